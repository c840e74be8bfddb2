#!/usr/bin/env bash
# Six hospitals, six kinds of picture, no network: what travels, travels in the folders of media/.
#
#   examples/hospitals/run.sh [--data FILE.npz|FOLDER] [--short] [--out FOLDER]
#
# One person plays all parts here, in the order in which they would act. README.md says more.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=hospitals-run hospitals=6 most=4000 samples=1200 steps=1000
data=()
while [ $# -gt 0 ]; do
  case $1 in
    --data) data=(--data "$2"); shift 2 ;;
    --out) out=$2; shift 2 ;;
    --short) hospitals=3 most=160 samples=60 steps=60; shift ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done
command -v ddm-site >/dev/null || { echo "first: . .venv/bin/activate" >&2; exit 1; }
[ ! -e "$out" ] || { echo "$out is there already: remove it, or name another with --out" >&2; exit 1; }

say() { printf '\n# %s\n' "$*" >&2; }
run() { printf '$ %s\n' "$*" >&2; "$@"; }
names=$(seq --format 'hospital-%.0f' "$hospitals")
smallest=hospital-$hospitals

say "Every hospital has pictures of its own kind; public.npz is for measuring"
run python "$here/pictures.py" "$out/images" --hospitals "$hospitals" --most "$most" \
  ${data[@]+"${data[@]}"}
cd "$out"

say "The coordinator makes its keys, and reads out the fingerprint by telephone"
root=$(run ddm-coord init consortium --federation hospitals)

say "Every hospital makes its key, says what it allows, and sends a request on its medium"
for name in $names; do
  run ddm-site init "$name" --name "$name" --root "$root" --max-epsilon 4 --must-be-private expert
  mkdir -p "media/$name"
  run cp "$name/enrolment.dsse.json" "media/$name/"
done

say "The coordinator accepts them, signs the plan, and puts both on every medium"
run ddm-coord roster add media/*/enrolment.dsse.json --coordinator consortium
run ddm-coord publish "$here/plan.toml" --coordinator consortium
for name in $names; do run cp -r consortium/published "media/$name/"; done

say "Every hospital, by itself: verify the plan, make the release, look at it, let it leave"
for name in $names; do
  at=(--site "$name" --plan "$name/published")
  run ddm-site import "media/$name" --site "$name"
  run ddm-site train "${at[@]}" --data "images/$name.npz"
  run ddm-site review "${at[@]}"
  run ddm-site release "${at[@]}"
  run ddm-site export "media/$name/ddm" "${at[@]}"
done

say "The coordinator takes in what the media bring, and puts signed receipts on them"
for name in $names; do run ddm-coord import "media/$name/ddm" --coordinator consortium; done
run ddm-coord assemble ensemble --coordinator consortium

say "Anybody who has the folder and the fingerprint can do this, offline"
run ddm-coord verify ensemble --root "$root"
run ddm-coord sample ensemble --root "$root" --count "$samples" --steps 20 --no-png --out samples
run ddm-coord evaluate samples --real images/public.npz --train images/public.npz --out evaluation \
  --training-steps "$steps"
run ddm-coord report ensemble --root "$root" --samples samples --evaluation evaluation \
  --router-samples "$samples" --out report.html

say "The smallest hospital keeps its receipt, attacks what left it, and shows its officer a page"
at=(--site "$smallest" --plan "$smallest/published" --data "images/$smallest.npz")
run ddm-site import "media/$smallest/ddm" --site "$smallest"
run ddm-site audit "${at[@]}"
run ddm-site report "${at[@]}" --out "$smallest/private/report.html"
run ddm-site ledger --site "$smallest"

say "Done. Look at"
echo "  $out/samples/grid.png                    pictures of the ensemble"
echo "  $out/report.html                         what is known of it: for everybody"
echo "  $out/$smallest/private/report.html    what left, beside private pictures: for its officer"
