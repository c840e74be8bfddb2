#!/bin/sh
# Installs DDM-Fed from the folder this script lies in, without any network.
#
#   sh WHEELHOUSE/install.sh VENV [DIGEST]      DIGEST: of SHA256SUMS, as the other side read it out
set -eu

test $# -ge 1 || { echo "usage: $0 VENV [DIGEST]" >&2; exit 2; }
wheels=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}

if [ -n "${2:-}" ] && [ "$(sha256sum "$wheels/SHA256SUMS" | cut -d' ' -f1)" != "$2" ]; then
    echo "error: SHA256SUMS is not the one that was read out; fetch the wheelhouse again" >&2
    exit 1
fi
(cd "$wheels" && sha256sum --check --strict --quiet SHA256SUMS)
listed=$(cut -c67- "$wheels/SHA256SUMS" | LC_ALL=C sort)
found=$(cd "$wheels" && ls -A | grep -vx SHA256SUMS | LC_ALL=C sort)
if [ "$listed" != "$found" ]; then  # pip would take any other wheel that lies there
    echo "error: there are files in $wheels that SHA256SUMS does not list" >&2
    exit 1
fi
"$python" -m venv "$1"
# --isolated: nobody's settings may name another place to look
"$1/bin/python" -m pip --isolated install --quiet --disable-pip-version-check --no-index \
    --find-links "$wheels" --constraint "$wheels/constraints.txt" \
    --requirement "$wheels/requirements.txt"
"$1/bin/ddm-site" --version
"$1/bin/ddm-coord" --version
