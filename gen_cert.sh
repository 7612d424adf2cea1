#!/usr/bin/env bash
# Make the certificates of a SQLFlow playground: its CA, its server's and its clients'.
#
#   gen_cert.sh server [NAME-OR-IP...]   the server's, for localhost, this host and the names given
#   gen_cert.sh CLIENT                   one client's; CLIENT is who the server takes it for
#   gen_cert.sh -h                       this help
#
# They go to key_store/ in the current folder, or to $KEY_STORE:
#
#   ca/ca.crt ca/ca.key                  made with the first one; ca.key signs all others: keep it safe
#   server/server.crt server.key ca.crt
#   CLIENT/CLIENT.crt CLIENT.key ca.crt  the folder is what a client is sent
#
# Nothing that is there is ever changed. To make one anew, move its folder away first.
set -Eeuo pipefail
# Keys are their owner's alone from the moment they exist.
umask 077
# [a-z] means those 26 letters, and cd goes where it is told and says nothing.
export LC_ALL=C
unset CDPATH

readonly CA_DAYS=3650
readonly DAYS=825 # The longest that Apple's TLS accepts.

die() {
  echo "gen_cert.sh: $*" >&2
  exit 2
}

usage() {
  sed -n '2,/^set /p' "$0" | sed -e '/^set /d' -e 's/^# \{0,1\}//'
}

quietly() { # COMMAND...: show what it says only if it fails
  local said
  said=$("$@" 2>&1) || die "$1 $2 failed: $said"
}

make_key() { # FILE
  quietly openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:named_curve -out "$1"
}

# 128 random bits behind a 1, so that it is positive and never 0 (RFC 5280, section 4.1.2.2).
serial() { echo "0x1$(openssl rand -hex 16)"; }

make_ca() { # FOLDER
  make_key "$1/ca.key"
  cat >"$1/config" <<END
[req]
prompt = no
distinguished_name = name
x509_extensions = ca
[name]
CN = SQLFlow playground CA $(openssl rand -hex 4)
[ca]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
END
  quietly openssl req -x509 -new -sha256 -config "$1/config" -key "$1/ca.key" -set_serial "$(serial)" -days "$CA_DAYS" -out "$1/ca.crt"
  rm "$1/config"
}

make_certificate() { # FOLDER NAME PURPOSE SUBJECT-ALTERNATIVE-NAMES
  make_key "$1/$2.key"
  cat >"$1/config" <<END
[req]
prompt = no
distinguished_name = name
[name]
CN = $2
[certificate]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = $3
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
${4:+subjectAltName = $4}
END
  quietly openssl req -new -sha256 -config "$1/config" -key "$1/$2.key" -out "$1/request"
  quietly openssl x509 -req -sha256 -in "$1/request" -CA "$store/ca/ca.crt" -CAkey "$store/ca/ca.key" -set_serial "$(serial)" \
    -days "$DAYS" -extfile "$1/config" -extensions certificate -out "$1/$2.crt"
  rm "$1/config" "$1/request"
  cp "$store/ca/ca.crt" "$1/ca.crt"
}

# A folder is made beside its place and moved there whole: an interrupted run leaves nothing half-made.
make_folder() { # NAME COMMAND FILE...
  local name=$1
  making=$(mktemp -d "$store/.making.XXXXXX")
  "$2" "$making" "${@:3}"
  # Where two run at once, mkdir fails for one of them. An empty folder can be replaced in one step, where mv knows -T.
  mkdir "$store/$name" 2>/dev/null || die "$store/$name has come into being meanwhile: nothing was changed"
  claimed=$store/$name
  mv -T "$making" "$claimed" 2>/dev/null || { rmdir "$claimed" && mv "$making" "$claimed"; }
  making='' claimed=''
}

alternative_names() { # NAME-OR-IP...
  local this_host name names=DNS:localhost,IP:127.0.0.1,IP:::1
  this_host=$(uname -n)
  for name in "$this_host" "$@"; do
    if [[ $name =~ ^[0-9]+(\.[0-9]+){3}$ || $name =~ ^[0-9A-Fa-f]*:[0-9A-Fa-f:.]*$ ]]; then
      name=IP:$name
    elif [[ ${#name} -le 253 && $name =~ ^(\*\.)?[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$ ]]; then
      name=DNS:$name
    elif [[ $name == "$this_host" ]]; then
      continue # It may be no DNS name; nobody asked for it.
    else
      die "$name is neither a DNS name nor an IP address"
    fi
    [[ ,$names, == *,$name,* ]] || names+=,$name
  done
  echo "$names"
}

whole() { # FOLDER FILE...: whether it is there; half of it is an error
  local folder=$1 file
  [[ -e $folder ]] || return 1
  for file in "${@:2}"; do
    [[ -s $folder/$file ]] || die "$folder is there, but not its $file: move the folder away, or restore the file from a backup"
  done
}

case ${1:-} in
  -h | --help) usage && exit ;;
  '') usage >&2 && exit 2 ;;
esac
name=$1
shift
[[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$ && $name != ca ]] ||
  die "'$name' cannot be a name: expected up to 64 letters, digits and . _ @ -, a letter or digit first, and not ca"
[[ $name == server || $# == 0 ]] || die "only a server has other names: gen_cert.sh server $*"
command -v openssl >/dev/null || die "openssl is missing: apt-get install openssl (Debian), brew install openssl (macOS)"
purpose=clientAuth names=
if [[ $name == server ]]; then
  purpose=serverAuth
  names=$(alternative_names "$@")
fi

mkdir -p "${KEY_STORE:-key_store}"
store=$(cd "${KEY_STORE:-key_store}" && pwd)
making='' claimed=''
trap '[[ -z $making ]] || rm -rf "$making"; [[ -z $claimed ]] || rmdir "$claimed" 2>/dev/null' EXIT
trap 'exit 130' INT TERM HUP

whole "$store/ca" ca.crt ca.key || make_folder ca make_ca
if whole "$store/$name" "$name.crt" "$name.key" ca.crt; then
  die "$store/$name is there already, and nothing was changed: move it away to make a new one"
fi
openssl x509 -in "$store/ca/ca.crt" -noout -checkend $((DAYS * 86400)) >/dev/null ||
  echo "gen_cert.sh: the CA ends before this certificate would: start a new key store, and send everybody new folders" >&2
make_folder "$name" make_certificate "$name" "$purpose" "$names"

printf -v shown %q "$store" # In what is printed to be pasted.
cat <<END
$store/$name/$name.crt   until $(openssl x509 -in "$store/$name/$name.crt" -noout -enddate | cut -d= -f2)
$store/$name/$name.key   keep it secret
$store/$name/ca.crt   until $(openssl x509 -in "$store/ca/ca.crt" -noout -enddate | cut -d= -f2)
END
if [[ $name == server ]]; then
  cat <<END

Valid for $names. Start the server:

  python -m playground --ca_crt=$shown/ca/ca.crt --server_key=$shown/server/server.key --server_crt=$shown/server/server.crt

Then make a certificate for each client: gen_cert.sh some_client
END
else
  cat <<END

Send the folder $store/$name to the client, on a safe way: who has the key is $name. To try it:

  curl --cacert $shown/$name/ca.crt --cert $shown/$name/$name.crt --key $shown/$name/$name.key https://localhost:50052/api/status

For a notebook, with the addresses and the paths as they are there, \$HOME/.sqlflow_playground.env:

  SQLFLOW_SERVER="localhost:50051"
  SQLFLOW_PLAYGROUND_USER_ID_ENV=SQLFLOW_USER_ID
  SQLFLOW_USER_ID="your_name"
  SQLFLOW_PLAYGROUND_SERVRE="https://localhost:50052"
  SQLFLOW_PLAYGROUND_SERVER_CA="$store/$name/ca.crt"
  SQLFLOW_PLAYGROUND_CLIENT_KEY="$store/$name/$name.key"
  SQLFLOW_PLAYGROUND_CLIENT_CERT="$store/$name/$name.crt"

(SERVRE is spelled so: the plug-in reads that.) Then: export SQLFLOW_JUPYTER_ENV_PATH=\$HOME/.sqlflow_playground.env
END
fi
