# The first stage: an unpacked root with PostgreSQL, a kernel and an initramfs, from Debian 12's
# packages. Slow only because of the download. Sourced by vm-images/build.
# shellcheck shell=bash disable=SC2154,SC2034 # one script in several files shares its variables

readonly SUITE=bookworm
readonly KERNEL_PACKAGE=linux-image-cloud-amd64
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# The kernel modules of the initramfs; initramfs/init loads them in the right order.
readonly MODULES="virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci
	virtio_blk virtio_console virtio-rng pvpanic pvpanic-mmio"

# Sets `packages` to the folder of the unpacked packages.
build_packages() {
	local key
	key=$(cat "$here/packages" "$here/lib/packages.sh" "$here/initramfs/init" | key)
	if [ "$refresh" = yes ]; then
		rm -rf "$cache/images/packages/$key"
		refresh=no # once for all images of this call
	fi
	cached packages "$key" make_packages
	packages=$result
}

make_packages() {
	local debs=$unfinished/debs
	say "$name: fetching Debian packages"
	fetch_packages "$debs"
	say "$name: unpacking"
	unpack_root "$debs" "$unfinished/root"
	unpack_kernel "$debs" "$unfinished"
	(cd "$debs" && sha256sum -- *.deb) >"$unfinished/versions"
	rm -rf "$debs"
}

# wanted_packages: the names in the list, without comments.
wanted_packages() { sed 's/#.*//' "$here/packages" | xargs -n1; }

# fetch_packages FOLDER: downloads the newest version of each package into FOLDER.
fetch_packages() {
	local debs=$1 wanted kernel
	mkdir -p "$debs" "$unfinished/apt"
	write_apt_configuration "$unfinished/apt"
	export APT_CONFIG=$unfinished/apt/apt.conf
	apt-get -q --error-on=any update >"$unfinished/apt/log" 2>&1 ||
		die "apt-get update failed; is the mirror in reach? SPARE_MIRROR names another one:
$(tail -n 5 "$unfinished/apt/log")"
	kernel=$(apt-cache show --no-all-versions "$KERNEL_PACKAGE" |
		sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p' || true)
	[ -n "$kernel" ] || die "the mirror has no $KERNEL_PACKAGE for $SUITE"
	mapfile -t wanted < <(wanted_packages)
	(cd "$debs" && apt-get -q download "$kernel" "${wanted[@]}") >"$unfinished/apt/log" 2>&1 ||
		die "downloading packages failed: $(tail -n 5 "$unfinished/apt/log")"
	unset APT_CONFIG
	rm -rf "$unfinished/apt"
}

# write_apt_configuration FOLDER: an apt of its own in FOLDER, which knows nothing of the machine's
# packages and has from the machine's configuration only how to reach a mirror.
write_apt_configuration() {
	local folder=$1
	mkdir -p "$folder"/{state/lists/partial,cache/archives/partial,parts}
	: >"$folder/state/status"
	{
		apt-config dump --format '%F "%v";%n' |
			grep -E '^Acquire::(http|https|Check|Retries|ForceIPv)' || true
		cat <<-END
			Dir::Etc::main "/dev/null";
			Dir::Etc::parts "$folder/parts";
			Dir::Etc::sourcelist "$folder/sources.list";
			Dir::Etc::sourceparts "$folder/parts";
			Dir::Etc::preferences "/dev/null";
			Dir::Etc::preferencesparts "$folder/parts";
			Dir::State "$folder/state";
			Dir::State::status "$folder/state/status";
			Dir::Cache "$folder/cache";
			APT::Architecture "amd64";
			APT::Sandbox::User "root";
			Acquire::Languages "none";
		END
	} >"$folder/apt.conf"
	{
		echo "deb [signed-by=$KEYRING] $(mirror_of "$SUITE") $SUITE main"
		echo "deb [signed-by=$KEYRING] $(mirror_of "$SUITE-security") $SUITE-security main"
	} >"$folder/sources.list"
}

# mirror_of RELEASE: SPARE_MIRROR, or where the machine's own apt gets that release, or Debian's own
# name for it. The security archive lies beside the main one.
mirror_of() {
	local release=$1 suffix='' own
	[ "$release" = "$SUITE" ] || suffix=-security
	if [ -n "${SPARE_MIRROR:-}" ]; then
		echo "${SPARE_MIRROR%/}$suffix"
		return
	fi
	# shellcheck disable=SC2016 # apt's variables
	own=$(apt-get indextargets --format '$(CREATED_BY) $(RELEASE) $(COMPONENT) $(REPO_URI)' |
		awk -v release="$release" '$1 == "Packages" && $2 == release && $3 == "main" { print $4; exit }')
	echo "${own:-http://deb.debian.org/debian$suffix}"
}

# unpack_root DEBS ROOT: the guest's root without what no program in it reads.
unpack_root() {
	local debs=$1 root=$2 deb folder
	mkdir -p "$root"/usr/{bin,sbin,lib,lib64}
	for folder in bin sbin lib lib64; do
		ln -s "usr/$folder" "$root/$folder"
	done
	for deb in "$debs"/*.deb; do
		case ${deb##*/} in linux-image-*) continue ;; esac
		dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink \
			--exclude='./usr/share/doc*' --exclude='*/man' --exclude='./usr/share/locale' \
			--exclude='./usr/share/lintian' --exclude='./usr/share/bug' \
			--exclude='./usr/share/zoneinfo/right' --exclude='./usr/share/zoneinfo/posix' \
			--exclude='./usr/lib/postgresql/*/lib/bitcode' --exclude='*/llvmjit*' \
			--exclude='./usr/lib/x86_64-linux-gnu/gconv' --exclude='./usr/share/i18n' \
			--exclude='./usr/lib/x86_64-linux-gnu/perl*' --exclude='./usr/share/perl*' ||
			die "cannot unpack ${deb##*/}"
	done
	mkdir -p "$root"/{dev,proc,sys,run,root,etc/ld.so.conf.d,var/lib/postgresql,var/log}
	install -d -m 1777 "$root/tmp" "$root/var/tmp"
	ln -sfn /run "$root/var/run"
	install_busybox_names "$root"
	chroot "$root" /sbin/ldconfig
	check_programs "$root" /usr/lib/postgresql/15/bin/{postgres,initdb,pg_ctl,psql} /usr/bin/pgrep \
		/usr/lib/postgresql/15/lib/{plpgsql,pgoutput}.so
}

# install_busybox_names ROOT: each of busybox's commands that no package brought.
install_busybox_names() {
	local root=$1 command
	for command in $("$root/usr/bin/busybox" --list); do
		[ -e "$root/usr/bin/$command" ] || [ -e "$root/usr/sbin/$command" ] ||
			ln -s busybox "$root/usr/bin/$command"
	done
	ln -sf ../lib/postgresql/15/bin/psql "$root/usr/bin/psql"
}

# check_programs ROOT FILE…: fails unless all shared libraries of these files are in ROOT and fit.
check_programs() {
	local root=$1 file wrong
	shift
	for file; do
		wrong=$(chroot "$root" /lib64/ld-linux-x86-64.so.2 --list "$file" 2>&1 |
			grep -E 'not found|error while|cannot open' || true)
		[ -z "$wrong" ] || die "$file would not start in the guest (vm-images/packages lists what is
in it; programs must be built on Debian 12): $wrong"
	done
}

# unpack_kernel DEBS FOLDER: vmlinuz and initrd.
unpack_kernel() {
	local debs=$1 folder=$2 tree=$2/kernel
	mkdir -p "$tree"
	dpkg-deb --fsys-tarfile "$debs"/linux-image-*.deb | tar -x -C "$tree"
	uncompress_kernel "$tree"/boot/vmlinuz-* "$folder/vmlinuz"
	make_initrd "$tree" "$folder/initrd"
	rm -rf "$tree"
}

# uncompress_kernel BZIMAGE FILE: the kernel's ELF file out of its bzImage (Documentation/arch/x86/
# boot.rst in its source: setup_sects at 0x1f1, payload offset and length at 0x248). QEMU starts it
# through its PVH entry, which saves the guest from decompressing itself: 0.4 s under emulation.
uncompress_kernel() {
	local image=$1 file=$2 sectors offset length
	sectors=$(od -An -tu1 -j $((0x1f1)) -N 1 "$image")
	offset=$(od -An -tu4 -j $((0x248)) -N 4 "$image")
	length=$(od -An -tu4 -j $((0x24c)) -N 4 "$image")
	# The last four bytes are the uncompressed size, which is no part of the LZ4 stream.
	tail -c +$(((sectors + 1) * 512 + offset + 1)) "$image" | head -c $((length - 4)) |
		lz4 -dcq >"$file" || true
	[ "$(head -c 4 "$file")" = $'\x7fELF' ] || die "cannot uncompress ${image##*/}: not LZ4 any more?"
}

# make_initrd TREE FILE: busybox, the modules and initramfs/init.
make_initrd() {
	local tree=$1 file=$2 folder=$1/initramfs module found
	mkdir -p "$folder"/{bin,dev,modules,root}
	cp "$unfinished/root/usr/bin/busybox" "$folder/bin/"
	cp "$here/initramfs/init" "$folder/init"
	for module in $MODULES; do
		found=$(find "$tree/lib/modules" -name "$module.ko")
		[ -n "$found" ] || die "the kernel package has no module $module"
		cp "$found" "$folder/modules/"
	done
	(cd "$folder" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) >"$file"
}
