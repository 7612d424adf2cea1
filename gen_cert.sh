#!/usr/bin/env bash
# Make, renew and revoke the certificates of a SQLFlow playground: its CA's, its server's and its clients'.
#
#   gen_cert.sh server [NAME-OR-IP...]          the server's, for localhost, this host and the names given
#   gen_cert.sh CLIENT                          one client's; CLIENT is who the server takes it for
#   gen_cert.sh CLIENT --pkcs12                 the same, new or there, as CLIENT.p12 too: for browsers,
#                                               Windows, Java
#   gen_cert.sh --renew server [NAME-OR-IP...]  a new one for the names in the old one and those given
#   gen_cert.sh --renew CLIENT                  a new one for the same client; the old one stays good until
#                                               it ends
#   gen_cert.sh --revoke NAME                   end all certificates of a client, or the server's
#   gen_cert.sh --list                          each certificate: whose, until when, whether good or revoked
#   gen_cert.sh -h                              this help
#
# They go to key_store/ in the current folder, or to $KEY_STORE:
#
#   ca/ca.crt ca.key                     made with the first one; ca.key signs all others: keep it safe
#   ca/ca.crl                            what is revoked; the server reads it where it lies beside ca.crt
#   ca/issued/                           every certificate signed, so that one whose folder has gone can be
#                                        revoked
#   server/server.crt server.key ca.crt
#   CLIENT/CLIENT.crt CLIENT.key ca.crt  the folder is what a client is sent
#   NAME+old-SERIAL/                     what was renewed, or revoked and made anew; delete it when you like
#
# Nothing else that is there is ever changed. What an interrupted run has begun is undone, or the next run
# completes it.
set -Eeuo pipefail
# Keys are their owner's alone from the moment they exist.
umask 077
# [a-z] means those 26 letters, and cd goes where it is told and says nothing.
export LC_ALL=C
unset CDPATH

readonly CA_DAYS=3650
readonly DAYS=825 # The longest that Apple's TLS accepts.
readonly BACK_SECONDS=3600 # Clocks differ: what begins now here may be of the future elsewhere.

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
  quietly openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:named_curve \
    -out "$1"
}

make_ca() { # FOLDER
  mkdir -p "$1/issued"
  sign "$1" ca "SQLFlow playground CA $(openssl rand -hex 4)" "$CA_DAYS" -selfsign -keyfile "$1/ca.key" <<END
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
END
  make_crl "$1"
}

make_certificate() { # FOLDER NAME SUBJECT-ALTERNATIVE-NAMES
  local purpose=clientAuth
  [[ $2 != server ]] || purpose=serverAuth
  mkdir "$1"
  sign "$1" "$2" "$2" "$DAYS" -cert "$store/ca/ca.crt" -keyfile "$store/ca/ca.key" <<END
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = $purpose
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
${3:+subjectAltName = $3}
END
  cp "$store/ca/ca.crt" "$1/ca.crt"
  record "$1/$2.crt"
}

# Of openssl's commands only ca takes dates in every version. The books that it keeps are made for it each
# time, in a folder that is thrown away. Its configuration has its own ideas of what $ and # mean in a path:
# there is none in it.
#
# The extensions come on stdin.
sign() { # FOLDER NAME COMMON-NAME DAYS OPTION...: make a key and its certificate
  local folder=$1 file=$1/$2 work=$making/signing
  mkdir "$work"
  cat >"$work/config" - <(configuration) <<END
[extensions]
$(cat)
[req]
prompt = no
distinguished_name = name
[name]
CN = $3
END
  make_key "$file.key"
  quietly openssl req -new -sha256 -config "$work/config" -key "$file.key" -out "$work/request"
  : >"$work/index.txt"
  # 128 random bits behind a 1, so that it is positive and never 0 (RFC 5280, section 4.1.2.2).
  echo "01$(openssl rand -hex 16)" >"$work/serial"
  (cd "$work" && quietly openssl ca -batch -notext -config config -extensions extensions \
    -startdate "$(moment 0)" -enddate "$(moment "$4")" "${@:5}" -in request -out new)
  # Openssl says nothing of a disk that is full.
  [[ $(openssl x509 -in "$work/new" -noout -pubkey 2>&1) == "$(openssl pkey -in "$file.key" -pubout)" ]] ||
    die "openssl did not write all of $2.key and $2.crt: is there room in $folder?"
  mv "$work/new" "$file.crt"
  rm -r "$work"
}

configuration() {
  cat <<END
[ca]
default_ca = this
[this]
database = index.txt
serial = serial
crlnumber = crlnumber
new_certs_dir = .
default_md = sha256
policy = policy
crl_extensions = crl
[policy]
commonName = supplied
[crl]
authorityKeyIdentifier = keyid:always
END
}

moment() { # DAYS: so many after everything that is made now begins
  local at=$(($(date +%s) - BACK_SECONDS + $1 * 86400))
  # GNU's, or BSD's.
  date -u -d "@$at" +%Y%m%d%H%M%SZ 2>/dev/null || date -u -r "$at" +%Y%m%d%H%M%SZ
}

# The list itself is all that is known of what is revoked: one file, replaced in one step.
make_crl() { # CA-FOLDER SERIAL...: make its ca.crl, or one with these serial numbers as well
  local ca=$1 work=$making/crl number=0 date serial
  shift
  mkdir "$work"
  configuration >"$work/config"
  {
    [[ ! -e $ca/ca.crl ]] || revoked "$ca/ca.crl"
    date=$(moment 0)
    for serial; do echo "$serial ${date#20}"; done
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
  date=$(moment 0)
  [[ $(openssl ca -help 2>&1) == *-crl_lastupdate* ]] || date='' # OpenSSL 1.1.1's begins now.
  (cd "$work" && quietly openssl ca -gencrl -config config -cert "$ca/ca.crt" -keyfile "$ca/ca.key" -out new \
    -crlsec "$(seconds_left "$ca/ca.crt")" ${date:+-crl_lastupdate "$date"})
  is_list "$work/new" "$ca" ||
    die "openssl did not write all of the list, and nothing was changed: is there room in $store?"
  [[ ! -e $ca/ca.crl || $(listed "$work/new") == $(($(listed "$ca/ca.crl") + $#)) ]] ||
    die "this openssl lost what was revoked already: nothing was changed. Use OpenSSL 1.1.1 or later"
  cat "$work/new" >"$work/ca.crl"
  mv -f "$work/ca.crl" "$ca/ca.crl"
  rm -r "$work"
}

is_list() { # FILE CA-FOLDER
  [[ $(openssl crl -in "$1" -noout -CAfile "$2/ca.crt" 2>&1) == *"verify OK"* ]]
}

# Four levels down, all openssls print nothing but these as INTEGER and TIME (RFC 5280, section 5.1).
revoked() { # CRL: a line for each: serial number, date
  openssl asn1parse -in "$1" |
    sed -n -E 's/^ *[0-9]+:d=4 .*prim: (INTEGER|[A-Z]+TIME) *://p' | paste -d ' ' - -
}

listed() { openssl crl -in "$1" -noout -text | grep -c 'Serial Number:' || true; } # CRL: how many are in it

is_revoked() { [[ $'\n'$(revoked "$store/ca/ca.crl") == *$'\n'"$1 "* ]]; }

serial_of() { # CERTIFICATE
  openssl x509 -in "$1" -noout -serial 2>/dev/null | cut -d= -f2 ||
    die "$1 is no certificate: move it away, or restore it from a backup"
}

end_of() { openssl x509 -in "$1" -noout -enddate | cut -d= -f2; }

seconds_left() { # CERTIFICATE
  local end
  end=$(end_of "$1")
  # GNU's, or BSD's.
  end=$(date -u -d "$end" +%s 2>/dev/null || date -u -j -f '%b %d %T %Y GMT' "$end" +%s) ||
    die "this date(1) cannot read dates"
  echo $((end - $(date +%s)))
}

record() { # CERTIFICATE...: keep a copy of each with the CA, by name and serial number
  local file name serial
  for file; do
    serial=$(serial_of "$file")
    name=$(openssl x509 -in "$file" -noout -subject -nameopt RFC2253 |
      sed -n 's/^subject= *CN=\([A-Za-z0-9][A-Za-z0-9._@-]*\)$/\1/p')
    [[ $name ]] || continue # None of ours.
    cp "$file" "$making/record"
    mv -f "$making/record" "${recorded:-$store/ca/issued}/$name+$serial.crt"
  done
}

clean_up() { # STATUS
  [[ -z $making ]] || rm -rf "$making"
  [[ -z $locked ]] || rmdir "$locked"
  [[ $1 != 1 ]] ||
    echo "gen_cert.sh: that failed, and left nothing half-made in use: mend it, and run the same again" >&2
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
  rm -f "$folder/$1.p12" # It has the old one.
  for file in "$1.key" ca.crt "$1.crt"; do # The certificate last: its serial number says how far this got.
    [[ ! -e $new/$file ]] || mv -f "$new/$file" "$folder/$file"
  done
  rmdir "$new"
  trap 'exit 130' INT TERM HUP
}

alternative_names() { # SUBJECT-ALTERNATIVE-NAMES NAME-OR-IP...: the former with the latter added
  local name names=$1 label='[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?'
  for name in "${@:2}"; do
    if [[ $name =~ ^[0-9]+(\.[0-9]+){3}$ || $name =~ ^[0-9A-Fa-f]*:[0-9A-Fa-f:.]*$ ]]; then
      name=IP:$name
    elif [[ ${#name} -le 253 && $name =~ ^(\*\.)?$label(\.$label)*$ ]]; then
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
    [[ -s $folder/$file ]] ||
      die "$folder is there, but not its $file: move the folder away, or restore the file from a backup"
  done
}

complete_ca() { # Make what is missing of it; key stores of older versions have neither list nor copies
  local file recorded
  if [[ ! -e $store/ca/ca.crl ]]; then
    [[ ! -e $store/ca/issued ]] ||
      die "$store/ca/ca.crl has gone, and with it what was revoked: restore it from a backup, or copy it" \
        "back from the server's machine. Without either, remove $store/ca/issued: the next run starts an" \
        "empty list"
    make_crl "$store/ca"
    echo "gen_cert.sh: this key store had no revocation list. The server takes it up if it lies beside its" \
      "--ca_crt, and with --crl=$store/ca/ca.crl" >&2
  fi
  is_list "$store/ca/ca.crl" "$store/ca" ||
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
  local folder=$store/$name names='' here=DNS:localhost,IP:127.0.0.1,IP:::1 this_host old=''
  if [[ $name == server ]]; then
    this_host=$(uname -n)
    names=$(alternative_names "$here" "$this_host" 2>/dev/null) || names=$here
    names=$(alternative_names "$names" "$@")
  fi
  if whole "$folder" "$name.crt" "$name.key" ca.crt; then
    old=$(serial_of "$folder/$name.crt")
    is_revoked "$old" || already
  fi
  make_certificate "$making/$name" "$name" "$names"
  if [[ $old ]]; then
    tell_lost_names "$(names_of "$folder/$name.crt")" "$(names_of "$making/$name/$name.crt")"
    set_aside "$old"
  fi
  mv "$making/$name" "$folder"
  tell_new "$names"
}

already() { # The certificate that is asked for is there
  local renewing="--renew $name makes a new one"
  [[ $name != server ]] || renewing="--renew server NAME... makes a new one, for these names as well"
  [[ $as_pkcs12 ]] ||
    die "$store/$name is there already, and nothing was changed: $renewing, --revoke $name ends it"
  pkcs12
  exit
}

pkcs12() { # The other form of what is there
  local file=$store/$name/$name.p12 password
  [[ ! -e $file ]] || die "$file is there already: remove it for one with another password"
  password=$(openssl rand -hex 16)
  # Not openssl's own choice of ciphers, which old Windows, macOS and Java cannot read: what keeps the key
  # safe is that nobody guesses 128 random bits. They are in no list of processes: echo is bash's own.
  echo "$password" | quietly openssl pkcs12 -export -in "${file%.p12}.crt" -inkey "${file%.p12}.key" \
    -name "$name" -certfile "$store/$name/ca.crt" -passout stdin -out "$making/p12" \
    -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-3DES -macalg sha1
  echo "$password" | quietly openssl pkcs12 -in "$making/p12" -noout -passin stdin
  mv "$making/p12" "$file"
  printf '\n%s   key and certificate in one file. Its password, which is shown this once: %s\n' \
    "$file" "$password"
}

tell_lost_names() { # OLD-NAMES NEW-NAMES
  local name lost=''
  while IFS= read -rd, name; do
    [[ ,$2, == *,$name,* ]] || lost+=" ${name#*:}"
  done <<<"$1,"
  [[ -z $lost ]] || echo "gen_cert.sh: the revoked one was also for$lost: gen_cert.sh --renew server$lost" >&2
}

names_of() { # CERTIFICATE: its alternative names
  openssl x509 -in "$1" -noout -text |
    sed -n '/X509v3 Subject Alternative Name/ { n; s/IP Address:/IP:/g; s/ //g; p; }'
}

set_aside() { # SERIAL
  [[ ! -e $store/$name+old-$1 ]] || die "$store/$name+old-$1 is in the way: move it away"
  mv "$store/$name" "$store/$name+old-$1"
  echo "The revoked one is now in $store/$name+old-$1."
}

renew() { # NAME-OR-IP...
  local folder=$store/$name names='' file end
  whole "$folder" "$name.crt" "$name.key" ca.crt ||
    die "there is no $folder to renew: gen_cert.sh $name makes one"
  ! is_revoked "$(serial_of "$folder/$name.crt")" || die "$name is revoked: gen_cert.sh $name makes a new one"
  record "$folder/$name.crt"
  if [[ $name == server ]]; then
    names=$(alternative_names "$(names_of "$folder/$name.crt")" "$@")
  fi
  end=$(end_of "$folder/$name.crt")
  make_certificate "$making/$name" "$name" "$names"
  # Whoever may read the old one, a server that is not root, may read the new one.
  for file in "$name.key" "$name.crt"; do
    cp -p "$folder/$file" "$making/$file"
    cat "$making/$name/$file" >"$making/$file"
    mv -f "$making/$file" "$making/$name/$file"
  done
  mv "$making/$name" "$store/.renewing.$name"
  replace "$name"
  echo "The old one stays good until $end. If its key may be in other hands: gen_cert.sh --revoke $name," \
    "then gen_cert.sh $name."
  tell_new "$names"
}

list() {
  local file serial state gone
  gone=$'\n'$(revoked "$store/ca/ca.crl")
  for file in "$store"/ca/issued/*.crt; do
    [[ -e $file ]] || continue
    name=${file##*/} name=${name%+*} serial=${file##*+} serial=${serial%.crt} state=good
    openssl x509 -in "$file" -noout -checkend 0 >/dev/null || state=ended
    [[ $gone != *$'\n'"$serial "* ]] || state=revoked
    printf '%-24s until %s   %s\n' "$name" "$(end_of "$file")" "$state"
  done
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

That keeps nobody from passing for the server: clients do not look at the list. Whoever has the key can do \
so until
$1, unless you start a new key store and send everybody new folders.

For a new one: gen_cert.sh server NAME-OR-IP..., with the names that clients use. A running server takes \
it up within seconds.
END
  else
    cat <<END

A server that reads that file (crl= in its first line) ends its connections within seconds, without a restart.
If it reads a copy on another machine, replace that copy now.

Its databases stay until they are idle. gen_cert.sh $name makes a new certificate, with which \
it is the same client.
END
  fi
}

tell_new() { # SUBJECT-ALTERNATIVE-NAMES
  local shown program="python3 -m playground"
  printf -v shown %q "$store" # In what is printed to be pasted.
  ! command -v sqlflow_playground >/dev/null || program=sqlflow_playground
  cat <<END
$store/$name/$name.crt   until $(end_of "$store/$name/$name.crt")
$store/$name/$name.key   keep it secret
$store/$name/ca.crt   until $(end_of "$store/ca/ca.crt")
END
  if [[ $name == server ]]; then
    cat <<END

Valid for $1. A running server takes it up within seconds. Start one:

  $program --ca_crt=$shown/ca/ca.crt --crl=$shown/ca/ca.crl \
--server_key=$shown/server/server.key --server_crt=$shown/server/server.crt

Then make a certificate for each client: gen_cert.sh some_client
END
  else
    cat <<END

Send the folder $store/$name to the client, on a safe way: who has the key is $name. To try it:

  curl --cacert $shown/$name/ca.crt --cert $shown/$name/$name.crt --key $shown/$name/$name.key \
https://localhost:50052/api/status

For a notebook, with the addresses and the paths as they are there, \$HOME/.sqlflow_playground.env:

  SQLFLOW_SERVER="localhost:50051"
  SQLFLOW_PLAYGROUND_USER_ID_ENV=SQLFLOW_USER_ID
  SQLFLOW_USER_ID="your_name"
  SQLFLOW_PLAYGROUND_SERVRE="https://localhost:50052"
  SQLFLOW_PLAYGROUND_SERVER_CA="$store/$name/ca.crt"
  SQLFLOW_PLAYGROUND_CLIENT_KEY="$store/$name/$name.key"
  SQLFLOW_PLAYGROUND_CLIENT_CERT="$store/$name/$name.crt"

(SERVRE is spelled so: the plug-in reads that.) Then: \
export SQLFLOW_JUPYTER_ENV_PATH=\$HOME/.sqlflow_playground.env
END
  fi
}

action=create as_pkcs12=''
case ${1:-} in
  -h | --help) usage && exit ;;
  '') usage >&2 && exit 2 ;;
  --list)
    [[ $# == 1 ]] || die "--list takes no name: it shows all"
    action=list
    set -- all
    ;;
  --renew | --revoke)
    [[ $# -gt 1 ]] || die "$1 takes a name: gen_cert.sh $1 some_client"
    action=${1#--}
    shift
    ;;
esac
name=$1
shift
[[ $action == create || $name != ca ]] ||
  die "the CA itself cannot be renewed or revoked: start a new key store, and send everybody new folders"
[[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$ && $name != ca ]] ||
  die "'$name' cannot be a name: expected up to 64 letters, digits and . _ @ -, a letter or digit first," \
    "and not ca"
if [[ $action == create && $name != server && $* == --pkcs12 ]]; then
  as_pkcs12=yes
  shift
fi
[[ $action != revoke || $# == 0 ]] || die "--revoke takes one name, not also $*"
[[ $name == server || $# == 0 ]] || die "only a server has other names: gen_cert.sh server $*"
alternative_names '' "$@" >/dev/null
command -v openssl >/dev/null ||
  die "openssl is missing: apt-get install openssl (Debian), brew install openssl (macOS)"

store=${KEY_STORE:-key_store}
[[ $action != create || -d $store ]] || mkdir -p "$store" 2>/dev/null ||
  die "the key store $store cannot be made there: name another place with KEY_STORE=FOLDER"
[[ -d $store ]] || die "there is no key store $store: name it with KEY_STORE=FOLDER"
for file in "$store" "$store/ca" "$store/ca/issued" "$store/$name" "$store/.lock" "$store/ca/ca.key"; do
  [[ ! -e $file || -r $file && -w $file && (! -d $file || -x $file) ]] ||
    die "$file is not yours to read and write: run this as its owner, or name another key store" \
      "with KEY_STORE=FOLDER"
done
store=$(cd "$store" && pwd)
making='' locked=''
trap 'clean_up $?' EXIT
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
  for file in "$store"/*/*.crt; do
    [[ ! -e $file ]] ||
      die "$file is of a CA that is not here, and one of a new CA would not go with it: restore" \
        "$store/ca from a backup, or name another key store with KEY_STORE=FOLDER"
  done
  make_ca "$making/ca"
  mv "$making/ca" "$store/ca"
  echo "a new CA, in $store/ca: clients and servers of another one, and its own, will refuse each other"
fi
complete_ca
if [[ $action == create || $action == renew ]]; then
  [[ $(seconds_left "$store/ca/ca.crt") -gt $((DAYS * 86400)) ]] ||
    echo "gen_cert.sh: the CA ends before this certificate would: start a new key store, and send everybody" \
      "new folders" >&2
fi
"$action" "$@"
[[ -z $as_pkcs12 ]] || pkcs12
