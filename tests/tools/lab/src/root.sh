#!/bin/bash
# Builds the root that all virtual hosts of the lab share: `root.sh FOLDER MIRROR`. FOLDER is new or
# empty. What is installed is the lab's whole difference from a plain Debian 12; the folder's name in the
# cache is derived from this file, so a change here builds a new one.
set -euo pipefail

readonly SUITE=bookworm
readonly INIT_PACKAGES=systemd,systemd-sysv,dbus,libpam-systemd
# A host: Corosync with the client of a witness, libvirt with QEMU, and what tests look with.
readonly PACKAGES="ca-certificates corosync corosync-qdevice curl iproute2 iputils-ping
	libvirt-clients libvirt-daemon-driver-qemu libvirt-daemon-system busybox-static cpio
	netcat-openbsd procps qemu-system-x86 qemu-utils"
# The witness, in the same root: a host does not start it.
readonly WITNESS_PACKAGES=corosync-qnetd

# Units that a host in the lab has no use for, or that wait for what a container has not got.
readonly MASKED="apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer
	e2scrub_reap.service fstrim.timer systemd-networkd-wait-online.service
	systemd-timesyncd.service libvirt-guests.service systemd-resolved.service"
# Units that the lab starts where they belong.
readonly DISABLED="corosync.service corosync-qdevice.service corosync-qnetd.service"

in_root() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C "$@"; }

install_packages() {
	debootstrap --variant=minbase --include="$INIT_PACKAGES" "$SUITE" "$root" "$mirror"
	printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
	chmod 755 "$root/usr/sbin/policy-rc.d"
	# shellcheck disable=SC2086 # lists of words
	in_root DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install \
		$PACKAGES $WITNESS_PACKAGES
	in_root apt-get clean
	rm -rf "$root/usr/sbin/policy-rc.d" "$root"/var/lib/apt/lists/*
}

# libvirt in a container: nothing to confine guests with, and no need to.
configure_libvirt() {
	cat >"$root/etc/libvirt/qemu.conf" <<-'END'
		user = "root"
		group = "root"
		dynamic_ownership = 0
		remember_owner = 0
		security_driver = "none"
		cgroup_controllers = []
		namespaces = []
		stdio_handler = "file"
	END
}

configure_system() {
	local unit
	for unit in $MASKED; do
		ln -sf /dev/null "$root/etc/systemd/system/$unit"
	done
	# shellcheck disable=SC2086
	in_root systemctl --quiet disable $DISABLED
	in_root systemctl --quiet enable libvirtd.service
	# A service user as the package makes it.
	in_root useradd --system --user-group --home-dir /var/lib/spare --no-create-home \
		--shell /usr/sbin/nologin spare
	# Each host has its own, from the lab.
	rm -f "$root/etc/machine-id" "$root/var/lib/dbus/machine-id" "$root/etc/hostname"
	# On the host's disk, where a crash leaves it to be read.
	mkdir -p "$root/etc/systemd/journald.conf.d"
	printf '[Journal]\nStorage=persistent\nSystemMaxUse=64M\nRateLimitBurst=0\n' \
		>"$root/etc/systemd/journald.conf.d/lab.conf"
}

root=$1 mirror=$2
install_packages
configure_libvirt
configure_system
