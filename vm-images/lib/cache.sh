# Messages, and the cache of stages. Sourced by vm-images/build.
# shellcheck shell=bash disable=SC2154,SC2034 # one script in several files shares its variables

# Results that are kept of each stage (of each image, for images): enough to go back to another
# branch and forth without building anew, few enough to stay within a few gigabytes.
readonly KEPT=3

say() { printf 'images: %s\n' "$*" >&2; }

die() {
	printf 'images: %s\n' "$*" >&2
	exit 1
}

# Opens the cache, waits until no other build uses it, and removes unfinished results at exit.
open_cache() {
	mkdir -p "$cache/images" || die "cannot create the cache $cache; choose another with --cache"
	cache=$(cd "$cache/images" && pwd)/..
	cache=$(readlink -f "$cache")
	exec 9>"$cache/images/lock"
	if ! flock -n 9; then
		say "waiting for another build that uses $cache"
		flock 9
	fi
	# Left by a build that was killed: nobody else holds the lock.
	rm -rf "$cache/images/unfinished"
	trap 'rm -rf "$cache/images/unfinished"' EXIT
}

# key TEXT…: a short hash of the arguments and of standard input.
key() { { printf '%s\0' "$@" && cat; } | sha256sum | cut -c1-20; }

# hash_of PATH…: a hash of the content, the names and the modes of these files and folders.
hash_of() {
	find "$@" -type f -printf '%P %m\0' | sort -z | sha256sum
	find "$@" -type f -print0 | sort -z | xargs -0 cat | sha256sum
}

# cached STAGE KEY COMMAND…: sets `result` to the folder of the result with that key. If there is
# none yet, COMMAND makes it in the folder `unfinished`.
cached() {
	local stage=$1 key=$2 started=$SECONDS
	shift 2
	result=$cache/images/$stage/$key
	if [ -d "$result" ]; then
		touch "$result"
		return
	fi
	unfinished=$cache/images/unfinished
	mkdir -p "$unfinished" "$cache/images/$stage"
	"$@"
	mv -T "$unfinished" "$result"
	say "$name: ${stage%%/*} done in $((SECONDS - started)) s"
	forget_old "$cache/images/$stage"
}

# forget_old FOLDER: removes all but the newest results in FOLDER.
forget_old() {
	local old
	find "$1" -mindepth 1 -maxdepth 1 -printf '%T@ %p\n' | sort -rn | tail -n +$((KEPT + 1)) |
		while read -r _ old; do
			rm -rf "$old"
		done
}
