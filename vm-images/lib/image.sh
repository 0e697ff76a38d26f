# The last stage: the guest's disk as an image and as an archive, with the current programs.
# Sourced by vm-images/build.
# shellcheck shell=bash disable=SC2154,SC2034 # one script in several files shares its variables

# Room for what a guest writes in its life, on top of what is in its image. The image is sparse.
readonly ROOM_MIB=1024

# The kernel's command line. Agreed on with no one: a guest is short-lived, alone and disposable.
#   panic=-1, oops=panic     a guest whose kernel is in trouble ends at once and is replaced
#   mitigations=off          nobody shares a guest with anybody else
#   cryptomgr.notests        saves 0.25 s of self-tests under emulation
#   tsc=reliable, no_timer_check, nowatchdog, rcu stalls   a pause of hours is no fault of the clock
#   noautogroup              priorities count among all processes: each of PostgreSQL's has a session of
#                            its own, and sessions would share the processor equally
#   audit, apparmor, ipv6    not used
readonly CMDLINE="console=ttyS0 quiet panic=-1 oops=panic mitigations=off nokaslr cryptomgr.notests \
tsc=reliable no_timer_check nowatchdog rcupdate.rcu_cpu_stall_suppress=1 noautogroup audit=0 apparmor=0 \
ipv6.disable=1"

# check_binaries: the programs that go into the image exist.
check_binaries() {
	local program
	[ "$door" = no ] || set -- spare-attacker
	for program in spare-shim "$service" "$@"; do
		[ -x "$binaries/$program" ] ||
			die "no program $binaries/$program; build it with: cargo build --release -p ${program/#auction/spare-auction}"
	done
	[ -f "$binaries/libspare_output.so" ] ||
		die "no library $binaries/libspare_output.so; build it with: cargo build --release -p spare-output"
}

# Sets `image` to the image's folder.
build_image() {
	local key
	key=$({
		cat "$packages/versions" "$packages/vmlinuz" "$binaries/spare-shim" "$binaries/$service"
		[ "$door" = no ] || cat "$binaries/spare-attacker"
		hash_of "$here/guest" "$here/recipes/$name" "$here/lib"
	} | key "${prepared##*/}" "$name")
	cached "image/$name" "$key" make_image "$key"
	image=$result
}

# make_image CONTENT
make_image() {
	local root=$unfinished/root
	say "$name: writing the image"
	fill_root "$root"
	cp --reflink=auto "$packages/vmlinuz" "$packages/initrd" "$unfinished/"
	tar -c -S --numeric-owner --sort=name -C "$root" -f "$unfinished/root.tar" .
	make_filesystem "$root" "$unfinished/root.img"
	cat >"$unfinished/image.toml" <<-END
		name = "$name"
		content = "$1"
		cmdline = "$CMDLINE"
		memory_mib = $memory_mib
		processors = $processors
		door = $([ "$door" = yes ] && echo true || echo false)

		[sha256]
		$(hashes vmlinuz initrd root.img root.tar)
	END
	rm -rf "$root"
}

# hashes FILE…: a line of image.toml for each of these files of the image. The agent uses no file with another.
hashes() {
	(cd "$unfinished" && sha256sum "$@") | sed -E 's/^([0-9a-f]{64})  (.*)$/"\2" = "\1"/'
}

# fill_root ROOT: everything that a guest's disk holds.
fill_root() {
	local root=$1
	make_root "$root"
	cp -a "$prepared/data" "$root/var/lib/postgresql/data"
	cp -a "$prepared/spare" "$root/var/lib/spare"
	install -d "$root/usr/lib/spare"
	install_program "$root" spare-shim
	install_program "$root" "$service"
	install_plugin "$root"
	ln -s /usr/lib/spare/spare-shim "$root/usr/sbin/init"
	if [ "$door" = yes ]; then
		install_program "$root" spare-attacker
		: >"$root/etc/spare/door"
	fi
}

# install_program ROOT PROGRAM: without debugging information, and checked to start in the guest.
install_program() {
	local root=$1 file=/usr/lib/spare/$2
	install -m 755 "$binaries/$2" "$root$file"
	if [ "$(head -c 4 "$root$file")" = $'\x7fELF' ]; then
		strip --strip-debug "$root$file"
		check_programs "$root" "$file"
	fi
}

# install_plugin ROOT: PostgreSQL's output plugin, likewise.
install_plugin() {
	local root=$1 file=/usr/lib/postgresql/15/lib/spare_output.so
	install -m 644 "$binaries/libspare_output.so" "$root$file"
	strip --strip-debug "$root$file"
	check_programs "$root" "$file"
}

# make_filesystem ROOT FILE: ext4 without a journal, as a guest that crashed is never booted again.
make_filesystem() {
	local root=$1 file=$2 used
	used=$(du -sm "$root" | cut -f1)
	mke2fs -q -t ext4 -O ^has_journal -m 0 -E root_owner=0:0 -L spare-root -d "$root" "$file" \
		$((used + ROOM_MIB))M >/dev/null
}

# link_image: DIR/NAME leads to the image.
link_image() {
	mkdir -p "$out"
	[ -L "$out/$name" ] || [ ! -e "$out/$name" ] ||
		die "$out/$name is there and is not a link of mine; remove it or choose another --out"
	ln -sfnT "$image" "$out/$name"
	echo "$out/$name"
}
