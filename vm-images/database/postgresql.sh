# Starts and stops PostgreSQL while an image is built. Sourced in the guest's root by its neighbours.
# shellcheck shell=sh
set -eu

data=/var/lib/postgresql/data

# as_postgres COMMAND: a shell command as the database's user.
as_postgres() { su -s /bin/sh postgres -c "cd /tmp && $1"; }

# start_postgresql OPTIONS: with options of the server that hold for this run only.
start_postgresql() {
	ifconfig lo up
	mkdir -p /run/postgresql
	chown postgres:postgres /run/postgresql
	as_postgres "pg_ctl --pgdata=$data --silent --wait --log=/tmp/postgresql.log --options='$1' start" || {
		cat /tmp/postgresql.log >&2
		exit 1
	}
}

stop_postgresql() { as_postgres "pg_ctl --pgdata=$data --silent --wait --mode=fast stop"; }
