#!/bin/sh
# After an older copy was restored: puts back a bundle that was admitted since, as its site kept it:
#   put_back.sh COORDINATOR BUNDLE RECEIPT
# BUNDLE is outbox/released/DIGEST of the site, RECEIPT is receipts/DIGEST.dsse.json. Several go back
# in the order of their receipts' log_index. `ddm-coord admit` verifies what was put there.
set -eu

[ $# -eq 3 ] || { echo "usage: put_back.sh COORDINATOR BUNDLE RECEIPT" >&2; exit 2; }
home=${1%/} bundle=${2%/} receipt=$3
digest=$(basename "$bundle")
[ "$digest.dsse.json" = "$(basename "$receipt")" ] || {
  echo "$receipt is not the receipt of $bundle" >&2
  exit 2
}

exec 9>>"$home/.lock"
flock --timeout 60 9
if grep --quiet --fixed-strings --line-regexp --file="$receipt" "$home/log/leaves.jsonl"; then
  echo "it is in the log already" >&2
  exit 0
fi
install -m 0440 "$bundle/submission.dsse.json" "$home/store/manifests/$digest.dsse.json"
for file in "$bundle"/*.safetensors; do
  sum=$(sha256sum "$file")
  install -m 0440 "$file" "$home/store/blobs/${sum%% *}"
done
{ cat "$receipt" && echo; } >>"$home/log/leaves.jsonl"
sync -f "$home"
