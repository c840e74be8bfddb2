#!/bin/sh
# Makes a folder from which DDM-Fed installs on a machine without any network, with digests of all
# that is in it. Run it in a checkout, with the same Python and kind of machine as over there.
#
#   examples/offline/wheelhouse.sh WHEELHOUSE [EXTRAS]        for example: wheelhouse keyring,sftp
#
# Over there:  sh WHEELHOUSE/install.sh VENV
set -eu

test $# -ge 1 || { echo "usage: $0 WHEELHOUSE [EXTRAS]" >&2; exit 2; }
target=$1
extras=[site,coordinator${2:+,$2}]
source=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}

mkdir -p "$target"
"$python" -m pip wheel --quiet --constraint "$source/constraints.txt" \
    --wheel-dir "$target" "$source$extras"
cp "$source/constraints.txt" "$source/examples/offline/install.sh" "$target"
echo "ddm-fed$extras" > "$target/requirements.txt"
cd "$target"
rm -f SHA256SUMS
sha256sum -- * > SHA256SUMS.part
mv SHA256SUMS.part SHA256SUMS
echo "$(ls -- *.whl | wc -l) wheels, $(du -sm . | cut -f1) MiB in $target" >&2
echo "read this digest to the people over there, it covers all others:" >&2
sha256sum SHA256SUMS | cut -d' ' -f1
