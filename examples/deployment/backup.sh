#!/bin/sh
# Copies a coordinator's or a site's folder while its programs run: backup.sh FOLDER COPY
#
# The first pass takes most of it and holds nobody up. The second takes what has changed since, under
# the lock that every program takes before it changes the folder: what is copied belongs together.
# Uploads in progress stay out, since their senders begin anew. The copy holds private keys.
set -eu

[ $# -eq 2 ] || { echo "usage: backup.sh FOLDER COPY" >&2; exit 2; }
folder=${1%/} copy=${2%/}
[ -f "$folder/coordinator.toml" ] || [ -f "$folder/site.toml" ] || {
  echo "$folder is no folder of a coordinator or a site" >&2
  exit 2
}
umask 077
mkdir -p "$copy"
set -- rsync --archive --delete --exclude=/.lock --exclude=/inbox/partial "$folder/" "$copy/"

status=0
"$@" || status=$?
[ $status -eq 0 ] || [ $status -eq 24 ] || exit $status # 24: a file was gone when its turn came

flock --timeout 3600 "$folder/.lock" "$@"
sync -f "$copy"
