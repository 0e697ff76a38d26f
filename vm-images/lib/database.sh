# The second and third stage: PostgreSQL's files with the service's schema and data, then what
# spare-shim adds. Sourced by vm-images/build.
# shellcheck shell=bash disable=SC2154,SC2034 # one script in several files shares its variables

# service_sql: the whole content of the database, as SQL.
service_sql() {
	"$binaries/$service" schema && "$binaries/$service" populate --size "$size"
}

# Sets `database` to the folder with the service's data. The key is the SQL itself, so that a new
# service program with the same data costs no new database; the SQL's hash is remembered by program.
build_database() {
	local sql key
	cached "sql/$service-$size" "$(key "$service" "$size" <"$binaries/$service")" make_sql_hash
	sql=$(cat "$result/hash")
	key=$({ cat "$packages/versions" "$here/lib/database.sh" && hash_of "$here/database" "$here/guest/etc"; } |
		key "$sql" "$shared_buffers_mib")
	cached "database/$service-$size" "$key" make_database
	database=$result
}

make_sql_hash() {
	service_sql | sha256sum >"$unfinished/hash" ||
		die "$service schema or populate failed (see above)"
}

make_database() {
	say "$name: creating the database ($size)"
	make_root "$unfinished/root"
	install -d -m 700 -o 101 -g 101 "$unfinished/root/var/lib/postgresql/data"
	service_sql | in_root "$unfinished/root" create-database
	keep "$unfinished/root" var/lib/postgresql/data
}

# Sets `prepared` to the folder with the database as spare-shim wants it.
build_prepared() {
	local key
	key=$(cat "$binaries/spare-shim" "$binaries/libspare_output.so" "$here/database/prepare" |
		key "${database##*/}")
	cached "prepared/$service-$size" "$key" make_prepared
	prepared=$result
}

make_prepared() {
	say "$name: preparing the database for the shim"
	make_root "$unfinished/root"
	cp -a "$database/data" "$unfinished/root/var/lib/postgresql/data"
	install -d -m 755 "$unfinished/root/usr/lib/spare" "$unfinished/root/var/lib/spare"
	install -m 755 "$binaries/spare-shim" "$unfinished/root/usr/lib/spare/"
	install_plugin "$unfinished/root"
	in_root "$unfinished/root" prepare
	keep "$unfinished/root" var/lib/postgresql/data var/lib/spare
}

# make_root FOLDER: a root to work in, of the packages and the guest's configuration.
make_root() {
	local root=$1
	cp -a --reflink=auto "$packages/root" "$root"
	cp -r "$here/guest/." "$root/"
	install -d -m 755 -o 101 -g 101 "$root/var/lib/postgresql"
	mknod -m 666 "$root/dev/null" c 1 3
	mknod -m 666 "$root/dev/zero" c 1 5
	mknod -m 666 "$root/dev/random" c 1 8
	mknod -m 666 "$root/dev/urandom" c 1 9
}

# in_root ROOT SCRIPT: runs database/SCRIPT inside ROOT. Its processes have no network, and none
# outlives the script.
in_root() {
	local root=$1 script=$2
	mkdir -p "$root/build"
	cp "$here/database/"* "$root/build/"
	echo "shared_buffers = ${shared_buffers_mib}MB" >>"$root/build/postgresql.conf"
	unshare --mount --ipc --net --pid --fork --kill-child \
		chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/usr/lib/postgresql/15/bin LC_ALL=C.UTF-8 \
		/bin/sh "/build/$script" >&2 || die "$script failed in $root (see above)"
	rm -rf "$root/build"
}

# keep ROOT FOLDER…: the result of a stage is these folders of ROOT and nothing else of it.
keep() {
	local root=$1 folder
	shift
	for folder; do
		mv "$root/$folder" "$unfinished/"
	done
	rm -rf "$root"
}
