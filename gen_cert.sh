#!/usr/bin/env bash
# Make, renew and revoke the certificates of a SQLFlow playground: its CA's, its server's and its clients'.
#
#   gen_cert.sh server [NAME-OR-IP...]          the server's, for localhost, this host and the names given
#   gen_cert.sh CLIENT                          one client's; CLIENT is who the server takes it for
#   gen_cert.sh --renew server [NAME-OR-IP...]  a new one for the names in the old one and those given
#   gen_cert.sh --renew CLIENT                  a new one for the same client; the old one stays good until it ends
#   gen_cert.sh --revoke NAME                   end all certificates of a client, or the server's
#   gen_cert.sh -h                              this help
#
# They go to key_store/ in the current folder, or to $KEY_STORE:
#
#   ca/ca.crt ca.key                     made with the first one; ca.key signs all others: keep it safe
#   ca/ca.crl                            what is revoked; the server reads it when started with --crl=FILE
#   ca/issued/                           every certificate signed, so that one whose folder has gone can be revoked
#   server/server.crt server.key ca.crt
#   CLIENT/CLIENT.crt CLIENT.key ca.crt  the folder is what a client is sent
#   NAME+old-SERIAL/                     what was renewed, or revoked and made anew; delete it when you like
#
# Nothing else that is there is ever changed. What an interrupted run has begun is undone, or the next run completes it.
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
  mkdir -p "$1/issued"
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
  make_crl "$1"
}

make_certificate() { # FOLDER NAME SUBJECT-ALTERNATIVE-NAMES
  local purpose=clientAuth
  [[ $2 != server ]] || purpose=serverAuth
  mkdir "$1"
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
extendedKeyUsage = $purpose
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
${3:+subjectAltName = $3}
END
  quietly openssl req -new -sha256 -config "$1/config" -key "$1/$2.key" -out "$1/request"
  quietly openssl x509 -req -sha256 -in "$1/request" -CA "$store/ca/ca.crt" -CAkey "$store/ca/ca.key" -set_serial "$(serial)" \
    -days "$DAYS" -extfile "$1/config" -extensions certificate -out "$1/$2.crt"
  rm "$1/config" "$1/request"
  cp "$store/ca/ca.crt" "$1/ca.crt"
  record "$1/$2.crt"
}

# The list itself is all that is known of what is revoked: one file, replaced in one step. openssl's
# database is made from it each time, in a folder that is thrown away.
make_crl() { # CA-FOLDER SERIAL...: make its ca.crl, or one with these serial numbers as well
  local ca=$1 work=$making/crl number=0 date serial
  shift
  mkdir "$work"
  cat >"$work/config" <<END
[ca]
default_ca = this
[this]
database = index.txt
crlnumber = crlnumber
default_md = sha256
crl_extensions = crl
[crl]
authorityKeyIdentifier = keyid:always
END
  {
    [[ ! -e $ca/ca.crl ]] || revoked "$ca/ca.crl"
    date=$(date -u +%y%m%d%H%M%SZ)
    for serial; do echo "$serial $date"; done
  } >"$work/revoked"
  while read -r serial date; do
    printf 'R\t%s\t%s\t%s\tunknown\t/CN=revoked\n' "$date" "$date" "$serial"
  done <"$work/revoked" >"$work/index.txt"
  if [[ -e $ca/ca.crl ]]; then
    number=$(openssl crl -in "$ca/ca.crl" -noout -crlnumber | sed -e 's/.*=//' -e 's/^0x//')
    # Whoever was given the right to read the old one has it to the new one.
    cp -p "$ca/ca.crl" "$work/ca.crl"
  fi
  printf '%08X\n' $((16#$number + 1)) >"$work/crlnumber"
  # openssl's configuration has its own ideas of what $ and # mean in a path: there is none in it.
  (cd "$work" && quietly openssl ca -gencrl -config config -cert "$ca/ca.crt" -keyfile "$ca/ca.key" -crlsec "$(seconds_left "$ca/ca.crt")" -out new)
  [[ ! -e $ca/ca.crl || $(listed "$work/new") == $(($(listed "$ca/ca.crl") + $#)) ]] ||
    die "this openssl lost what was revoked already: nothing was changed. Use OpenSSL 1.1.1 or later"
  cat "$work/new" >"$work/ca.crl"
  mv -f "$work/ca.crl" "$ca/ca.crl"
  rm -r "$work"
}

# Four levels down, all openssls print nothing but these as INTEGER and TIME (RFC 5280, section 5.1).
revoked() { # CRL: a line for each: serial number, date
  openssl asn1parse -in "$1" | sed -n -E 's/^ *[0-9]+:d=4 .*prim: (INTEGER|[A-Z]+TIME) *://p' | paste -d ' ' - -
}

listed() { openssl crl -in "$1" -noout -text | grep -c 'Serial Number:' || true; } # CRL: how many are in it

is_revoked() { [[ $'\n'$(revoked "$store/ca/ca.crl") == *$'\n'"$1 "* ]]; }

serial_of() { # CERTIFICATE
  openssl x509 -in "$1" -noout -serial 2>/dev/null | cut -d= -f2 || die "$1 is no certificate: move it away, or restore it from a backup"
}

end_of() { openssl x509 -in "$1" -noout -enddate | cut -d= -f2; }

seconds_left() { # CERTIFICATE
  local end
  end=$(end_of "$1")
  # GNU's, or BSD's.
  end=$(date -u -d "$end" +%s 2>/dev/null || date -u -j -f '%b %d %T %Y GMT' "$end" +%s) || die "this date(1) cannot read dates"
  echo $((end - $(date +%s)))
}

record() { # CERTIFICATE...: keep a copy of each with the CA, by name and serial number
  local file name serial
  for file; do
    serial=$(serial_of "$file")
    name=$(openssl x509 -in "$file" -noout -subject -nameopt RFC2253 | sed -n 's/^subject= *CN=\([A-Za-z0-9][A-Za-z0-9._@-]*\)$/\1/p')
    [[ $name ]] || continue # None of ours.
    cp "$file" "$making/record"
    mv -f "$making/record" "${recorded:-$store/ca/issued}/$name+$serial.crt"
  done
}

# Two runs at once would each write a list without what the other one revokes.
lock() {
  local waiting="gen_cert.sh: waiting for another gen_cert.sh in $store"
  if command -v flock >/dev/null; then
    exec 9>>"$store/.lock" # The kernel gives it free, however this run ends.
    flock -n 9 || { echo "$waiting" >&2 && flock 9; }
  else
    until mkdir "$store/.locked" 2>/dev/null; do
      [[ -z $waiting ]] || echo "$waiting; if there is none: rmdir $store/.locked" >&2
      waiting='' && sleep 1
    done
    locked=$store/.locked
  fi
}

# The new files lie beside, whole, before the first of them takes its place. The server keeps the old pair
# while key and certificate do not match. The folder itself stays: it may be mounted somewhere.
replace() { # NAME: finish a renewal, at whatever moment it was interrupted
  local new=$store/.renewing.$1 folder=$store/$1 old file
  trap '' INT TERM HUP
  [[ -e $folder ]] || mkdir "$folder"
  if [[ -e $new/$1.crt && -e $folder/$1.crt ]]; then
    old=$folder+old-$(serial_of "$folder/$1.crt")
    if [[ ! -e $old ]]; then
      cp -pR "$folder" "$making/old"
      mv "$making/old" "$old"
    fi
  fi
  for file in "$1.key" ca.crt "$1.crt"; do # The certificate last: its serial number says how far this got.
    [[ ! -e $new/$file ]] || mv -f "$new/$file" "$folder/$file"
  done
  rmdir "$new"
  trap 'exit 130' INT TERM HUP
}

alternative_names() { # SUBJECT-ALTERNATIVE-NAMES NAME-OR-IP...: the former with the latter added
  local name names=$1
  for name in "${@:2}"; do
    if [[ $name =~ ^[0-9]+(\.[0-9]+){3}$ || $name =~ ^[0-9A-Fa-f]*:[0-9A-Fa-f:.]*$ ]]; then
      name=IP:$name
    elif [[ ${#name} -le 253 && $name =~ ^(\*\.)?[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$ ]]; then
      name=DNS:$name
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

complete_ca() { # Make what is missing of it; key stores of older versions have neither list nor copies
  local file recorded
  if [[ ! -e $store/ca/ca.crl ]]; then
    [[ ! -e $store/ca/issued ]] || die "$store/ca/ca.crl has gone, and with it what was revoked: restore it from a backup, or copy it back" \
      "from the server's machine. Without either, remove $store/ca/issued: the next run starts an empty list"
    make_crl "$store/ca"
    echo "gen_cert.sh: this key store had no revocation list. Start the server with --crl=$store/ca/ca.crl from now on" >&2
  fi
  [[ $(openssl crl -in "$store/ca/ca.crl" -noout -CAfile "$store/ca/ca.crt" 2>&1) == *"verify OK"* ]] ||
    die "$store/ca/ca.crl is damaged, or of another CA: restore it from a backup"
  [[ ! -e $store/ca/issued ]] || return 0
  recorded=$making/issued
  mkdir "$recorded"
  for file in "$store"/*/*.crt; do
    [[ ! -s $file || $file == */ca.crt ]] || record "$file"
  done
  mv "$recorded" "$store/ca/issued"
}

create() { # NAME-OR-IP...
  local folder=$store/$name names='' this_host old=''
  if [[ $name == server ]]; then
    this_host=$(uname -n)
    names=$(alternative_names DNS:localhost,IP:127.0.0.1,IP:::1 "$this_host" 2>/dev/null) || names=DNS:localhost,IP:127.0.0.1,IP:::1
    names=$(alternative_names "$names" "$@")
  fi
  if whole "$folder" "$name.crt" "$name.key" ca.crt; then
    old=$(serial_of "$folder/$name.crt")
    is_revoked "$old" || die "$folder is there already, and nothing was changed: --renew $name makes a new one, --revoke $name ends it"
  fi
  make_certificate "$making/$name" "$name" "$names"
  [[ -z $old ]] || set_aside "$old"
  mv "$making/$name" "$folder"
  tell_new "$names"
}

set_aside() { # SERIAL
  [[ ! -e $store/$name+old-$1 ]] || die "$store/$name+old-$1 is in the way: move it away"
  mv "$store/$name" "$store/$name+old-$1"
  echo "The revoked one is now in $store/$name+old-$1."
}

renew() { # NAME-OR-IP...
  local folder=$store/$name names='' file end
  whole "$folder" "$name.crt" "$name.key" ca.crt || die "there is no $folder to renew: gen_cert.sh $name makes one"
  ! is_revoked "$(serial_of "$folder/$name.crt")" || die "$name is revoked: gen_cert.sh $name makes a new one"
  record "$folder/$name.crt"
  if [[ $name == server ]]; then
    names=$(openssl x509 -in "$folder/$name.crt" -noout -text | sed -n '/X509v3 Subject Alternative Name/ { n; s/IP Address:/IP:/g; s/ //g; p; }')
    names=$(alternative_names "$names" "$@")
  fi
  end=$(end_of "$folder/$name.crt")
  make_certificate "$making/$name" "$name" "$names"
  for file in "$name.key" "$name.crt"; do # Whoever may read the old one, a server that is not root, may read the new one.
    cp -p "$folder/$file" "$making/$file"
    cat "$making/$name/$file" >"$making/$file"
    mv -f "$making/$file" "$making/$name/$file"
  done
  mv "$making/$name" "$store/.renewing.$name"
  replace "$name"
  echo "The old one stays good until $end. If its key may be in other hands: gen_cert.sh --revoke $name, then gen_cert.sh $name."
  tell_new "$names"
}

revoke() {
  local file serial known='' end=''
  [[ ! -s $store/$name/$name.crt ]] || record "$store/$name/$name.crt"
  set --
  for file in "$store/ca/issued/$name+"*.crt; do
    [[ -e $file ]] || continue
    known=1
    serial=${file##*+}
    serial=${serial%.crt}
    openssl x509 -in "$file" -noout -checkend 0 >/dev/null || continue
    is_revoked "$serial" && continue
    set -- "$@" "$serial"
    end=$(end_of "$file")
  done
  [[ $known ]] || die "no certificate of $name is known in $store: ls $store/ca/issued shows all"
  if [[ $# == 0 ]]; then
    echo "All certificates of $name were revoked already, or have ended: nothing was changed"
    return
  fi
  make_crl "$store/ca" "$@"
  echo "$name is revoked, and is in $store/ca/ca.crl with the serial number${2:+s} $*"
  tell_revoked "$end"
}

tell_revoked() { # END
  if [[ $name == server ]]; then
    cat <<END

That keeps nobody from passing for the server: clients do not look at the list. Whoever has the key can do so until
$1, unless you start a new key store and send everybody new folders.

For a new one: gen_cert.sh server NAME-OR-IP..., with the names that clients use. A running server takes it up within seconds.
END
  else
    cat <<END

A server that was started with --crl=$store/ca/ca.crl ends its connections within seconds, without a restart.
If it reads a copy on another machine, replace that copy now.

Its databases stay until they are idle. gen_cert.sh $name makes a new certificate, with which it is the same client.
END
  fi
}

tell_new() { # SUBJECT-ALTERNATIVE-NAMES
  local shown
  printf -v shown %q "$store" # In what is printed to be pasted.
  cat <<END
$store/$name/$name.crt   until $(end_of "$store/$name/$name.crt")
$store/$name/$name.key   keep it secret
$store/$name/ca.crt   until $(end_of "$store/ca/ca.crt")
END
  if [[ $name == server ]]; then
    cat <<END

Valid for $1. A running server takes it up within seconds. Start one:

  python -m playground --ca_crt=$shown/ca/ca.crt --crl=$shown/ca/ca.crl --server_key=$shown/server/server.key --server_crt=$shown/server/server.crt

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
}

action=create
case ${1:-} in
  -h | --help) usage && exit ;;
  '') usage >&2 && exit 2 ;;
  --renew | --revoke)
    [[ $# -gt 1 ]] || die "$1 takes a name: gen_cert.sh $1 some_client"
    action=${1#--}
    shift
    ;;
esac
name=$1
shift
[[ $action == create || $name != ca ]] || die "the CA itself cannot be renewed or revoked: start a new key store, and send everybody new folders"
[[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$ && $name != ca ]] ||
  die "'$name' cannot be a name: expected up to 64 letters, digits and . _ @ -, a letter or digit first, and not ca"
[[ $action != revoke || $# == 0 ]] || die "--revoke takes one name, not also $*"
[[ $name == server || $# == 0 ]] || die "only a server has other names: gen_cert.sh server $*"
alternative_names '' "$@" >/dev/null
command -v openssl >/dev/null || die "openssl is missing: apt-get install openssl (Debian), brew install openssl (macOS)"

store=${KEY_STORE:-key_store}
[[ $action != create ]] || mkdir -p "$store"
[[ -d $store ]] || die "there is no key store $store: name it with KEY_STORE=FOLDER"
store=$(cd "$store" && pwd)
making='' locked=''
trap '[[ -z $making ]] || rm -rf "$making"; [[ -z $locked ]] || rmdir "$locked"' EXIT
trap 'exit 130' INT TERM HUP
lock
rm -rf "$store"/.making.* # A run that was killed.
# Whatever is made is made here, and moved to its place whole.
making=$(mktemp -d "$store/.making.XXXXXX")
for renewing in "$store"/.renewing.*; do
  [[ -e $renewing ]] || continue
  replace "${renewing##*/.renewing.}"
  echo "gen_cert.sh: completed a renewal that was interrupted: ${renewing##*/.renewing.}" >&2
done

if ! whole "$store/ca" ca.crt ca.key; then
  [[ $action == create ]] || die "there is no CA in $store: gen_cert.sh server makes one"
  make_ca "$making/ca"
  mv "$making/ca" "$store/ca"
fi
complete_ca
if [[ $action != revoke ]]; then
  [[ $(seconds_left "$store/ca/ca.crt") -gt $((DAYS * 86400)) ]] ||
    echo "gen_cert.sh: the CA ends before this certificate would: start a new key store, and send everybody new folders" >&2
fi
"$action" "$@"
