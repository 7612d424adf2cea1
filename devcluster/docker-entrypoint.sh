#!/usr/bin/env bash
# What the image's entry script of this name does, in its order and with its exit codes.
#
# A folder in which there is a mysql/ is a database, whether or not its first start came to an end. A first
# start makes the system tables; starts a server without a network; has it set root's password, and run the
# files of /docker-entrypoint-initdb.d; stops it; and then runs the server that was asked for in its place.
set -eo pipefail
shopt -s nullglob

note() {
  printf '%s [Note] [Entrypoint]: %s\n' "$(date --rfc-3339=seconds)" "$*"
}

fail() {
  printf '%s [ERROR] [Entrypoint]: %s\n' "$(date --rfc-3339=seconds)" "$*" >&2
  exit 1
}

setting() { # NAME [DEFAULT]: what MARIADB_NAME or MYSQL_NAME is, or what is in MARIADB_NAME_FILE and so on
  local name file
  for name in "MARIADB_$1" "MYSQL_$1"; do
    file=${name}_FILE
    if [[ -n ${!name:-} ]]; then
      printf %s "${!name}"
      return
    elif [[ -n ${!file:-} ]]; then
      printf %s "$(<"${!file}")"
      return
    fi
  done
  printf %s "${2:-}"
}

quoted() { # TEXT: as it stands between quotes in SQL
  local text=${1//\\/\\\\}
  printf %s "${text//\'/\\\'}"
}

docker_process_sql() { # OPTION...: run SQL from stdin as root; *.sh files call it by this name
  MYSQL_PWD=$password mariadb --protocol=socket --user=root --host=localhost --socket="$socket" \
    ${MARIADB_DATABASE:+--database="$MARIADB_DATABASE"} "$@"
}

first_start() { # SERVER OPTION...
  local root_password own_password f
  root_password=$(setting ROOT_PASSWORD) own_password=$(setting PASSWORD)
  MARIADB_DATABASE=$(setting DATABASE) MARIADB_USER=$(setting USER)
  [[ -n $root_password$(setting ALLOW_EMPTY_ROOT_PASSWORD "${MYSQL_ALLOW_EMPTY_PASSWORD:-}") ]] ||
    fail "Database is uninitialized and password option is not specified"
  note "Initializing database files"
  mariadb-install-db --datadir="$folder" --rpm --auth-root-authentication-method=normal "${@:2}" \
    --skip-test-db --default-time-zone=SYSTEM --enforce-storage-engine= --skip-log-bin
  note "Starting temporary server"
  "$@" --skip-networking --default-time-zone=SYSTEM --socket="$socket" &
  local server=$! tries=0
  until [[ -S $socket ]] && MARIADB_DATABASE='' password='' docker_process_sql --execute='SELECT 1' \
    >/dev/null 2>&1; do
    ((++tries < 300)) || fail "Unable to start server."
    sleep 0.1 # The image's waits for a second each time.
  done
  if [[ -z $(setting INITDB_SKIP_TZINFO) ]] && command -v mariadb-tzinfo-to-sql >/dev/null; then
    mariadb-tzinfo-to-sql --skip-write-binlog /usr/share/zoneinfo |
      MARIADB_DATABASE=mysql password='' docker_process_sql
  fi
  note "Securing system users (equivalent to running mysql_secure_installation)"
  {
    echo "SET @@SESSION.SQL_LOG_BIN=0; DROP USER IF EXISTS root@'127.0.0.1', root@'::1';"
    printf '%s\n' "EXECUTE IMMEDIATE CONCAT('DROP USER IF EXISTS root@\\'', @@hostname, '\\'');"
    echo "SET PASSWORD FOR root@localhost = PASSWORD('$(quoted "$root_password")');"
    echo "CREATE USER root@'$(setting ROOT_HOST %)' IDENTIFIED BY '$(quoted "$root_password")';"
    echo "GRANT ALL ON *.* TO root@'$(setting ROOT_HOST %)' WITH GRANT OPTION;"
    [[ -z $MARIADB_DATABASE ]] || echo "CREATE DATABASE IF NOT EXISTS \`$MARIADB_DATABASE\`;"
    if [[ -n $MARIADB_USER && -n $own_password ]]; then
      echo "CREATE USER '$MARIADB_USER'@'%' IDENTIFIED BY '$(quoted "$own_password")';"
      [[ -z $MARIADB_DATABASE ]] ||
        echo "GRANT ALL ON \`${MARIADB_DATABASE//_/\\_}\`.* TO '$MARIADB_USER'@'%';"
    fi
  } | MARIADB_DATABASE=mysql password='' docker_process_sql --binary-mode
  password=$root_password
  # The image calls it f, too.
  for f in "$initdb"/*; do
    case $f in
      *.sh)
        note "$0: running $f"
        # shellcheck disable=SC1090
        if [[ -x $f ]]; then "$f"; else . "$f"; fi
        ;;
      *.sql) note "$0: running $f" && docker_process_sql <"$f" ;;
      *.sql.gz) note "$0: running $f" && gunzip -c "$f" | docker_process_sql ;;
      *.sql.xz) note "$0: running $f" && xzcat "$f" | docker_process_sql ;;
      *.sql.zst) note "$0: running $f" && zstd -dc "$f" | docker_process_sql ;;
      *) note "$0: ignoring $f" ;;
    esac
  done
  note "Stopping temporary server"
  kill "$server"
  wait "$server"
  note "MariaDB init process done. Ready for start up."
}

[[ ${1:0:1} != - ]] || set -- mariadbd "$@"
if [[ $1 == mariadbd || $1 == mysqld ]]; then
  settings=$("$@" --verbose --help 2>&1) || fail "mariadbd failed while attempting to check config: $settings"
  folder=$(awk '/^datadir / {print $2; exit}' <<<"$settings")
  socket=$(awk '/^socket / {print $2; exit}' <<<"$settings")
  initdb=${DEVCLUSTER_INITDB:?}
  mkdir -p "$folder"
  [[ -d ${folder%/}/mysql ]] || first_start "$@"
fi
exec "$@"
