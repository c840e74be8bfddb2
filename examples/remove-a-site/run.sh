#!/usr/bin/env bash
# A hospital leaves. What the others have is then, bit for bit, what it was had it never come.
#
#   examples/remove-a-site/run.sh [--short] [--out FOLDER]
#
# One person plays all parts here. README.md says what cannot be taken back.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=remove-run samples=500 solver=15 taught=4000 steps=600
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2; shift 2 ;;
    --short) samples=16 solver=4 taught=60 steps=5; shift ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done
command -v ddm-site >/dev/null || { echo "first: . .venv/bin/activate" >&2; exit 1; }
[ ! -e "$out" ] || { echo "$out is there already: remove it, or name another with --out" >&2; exit 1; }

say() { printf '\n# %s\n' "$*" >&2; }
run() { printf '$ %s\n' "$*" >&2; "$@"; }
refused() {
  if run "$@"; then echo "this should have been refused" >&2; exit 1; fi
  echo "(refused, as it should be)" >&2
}
joins() { # NAME DIGITS: a hospital is enrolled, releases what it has, and hands it in
  local at=(--site "$1" --plan consortium/published)
  run ddm-site init "$1" --name "$1" --root "$root" --max-epsilon 8
  run ddm-coord roster add "$1/enrolment.dsse.json" --coordinator consortium
  [ -e consortium/published/plan.dsse.json ] ||
    run ddm-coord publish "$here/../digits/plan-private.toml" --coordinator consortium
  run ddm-site train "${at[@]}" --data "digits:$2" --yes
  run ddm-site review "${at[@]}"
  run ddm-site release "${at[@]}"
  run ddm-site submit "${at[@]}" --to consortium/inbox
  run ddm-coord admit --coordinator consortium
}
mkdir -p "$out" && cd "$out"

say "Two hospitals. A copy of this day's coordinator is one to which the third never came"
root=$(run ddm-coord init consortium --federation private-digits)
joins hospital-a 0-4
joins hospital-b 5-7
cp -r consortium never
run ddm-coord assemble never/ensemble --coordinator never

say "The third joins. An ensemble, a student and a router are made that know it"
joins hospital-c 8-9
run ddm-coord assemble all --coordinator consortium
run ddm-coord distill all --coordinator consortium --architecture DiT-Nano/4 \
  --samples "$taught" --steps "$steps" --out student
run ddm-coord router build all --coordinator consortium --kind replay \
  --samples-per-site "$samples" --training-steps "$steps" --out router

say "It leaves: a signed entry of the log, and an ensemble without it"
run ddm-coord remove hospital-c --reason "consent withdrawn" --delete-weights \
  --coordinator consortium --out without

say "What the two have is what they would have had: the same files, the same samples, bit for bit"
run diff -r never/ensemble/sites without/sites
for folder in never/ensemble without; do
  run ddm-coord sample "$folder" --root "$root" --count "$samples" --steps "$solver" --seed 1 \
    --strategy full --no-png --out "$folder-samples"
done
run cmp never/ensemble-samples/samples.npz without-samples/samples.npz
echo "equal, bit for bit" >&2

say "What knew the third is stale, for everybody who sees what is published"
refused ddm-coord verify all --root "$root" --published consortium/published
refused ddm-coord verify student --root "$root" --published consortium/published
refused ddm-coord sample all --coordinator consortium --out stale
refused ddm-coord assemble another --coordinator consortium --router router

say "It may come back with new data, unless its keys are revoked as well"
run ddm-coord roster revoke hospital-c --coordinator consortium

say "What cannot be taken back: a copy of the old folder still verifies where nobody heard the news"
mkdir elsewhere && cp -r all elsewhere/
(cd elsewhere && run ddm-coord verify all --root "$root")
say "and what the third spent stays spent"
run ddm-site ledger --site hospital-c
