#!/usr/bin/env bash
# Two hospitals whose pictures have captions. No word of a caption leaves; prompts say what is drawn.
#
#   examples/text/run.sh [--encoder FILE.safetensors] [--short] [--out FOLDER]
#
# One person plays all parts here. README.md says where a real text encoder comes from.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=text-run steps=800 samples=300 encoder=
while [ $# -gt 0 ]; do
  case $1 in
    --encoder) encoder=$(realpath "$2"); shift 2 ;;
    --out) out=$2; shift 2 ;;
    --short) steps=3 samples=20; shift ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done
command -v ddm-site >/dev/null || { echo "first: . .venv/bin/activate" >&2; exit 1; }
[ ! -e "$out" ] || { echo "$out is there already: remove it, or name another with --out" >&2; exit 1; }

say() { printf '\n# %s\n' "$*" >&2; }
run() { printf '$ %s\n' "$*" >&2; "$@"; }
mkdir -p "$out" && cd "$out"

say "Pictures with captions, each hospital in its own words; and a text encoder that all share"
run python "$here/captioned.py" .
if [ -z "$encoder" ]; then
  encoder=clip.safetensors
  run python "$here/draw_clip.py" "$encoder"
fi

say "The plan names the encoder by its digest"
sed "s/^steps = .*/steps = $steps/" "$here/plan.toml" > plan.toml
run ddm-coord plan text "$encoder" --tokens 12 | tee -a plan.toml

say "A coordinator and two hospitals, as in every federation"
root=$(run ddm-coord init consortium --federation captions)
for name in north south; do
  run ddm-site init "$name" --name "$name" --root "$root"
  run ddm-coord roster add "$name/enrolment.dsse.json" --coordinator consortium
done
run ddm-coord publish plan.toml --coordinator consortium

say "Captions are encoded once, and stay in private/"
for name in north south; do
  at=(--site "$name" --plan consortium/published)
  run ddm-site train "${at[@]}" --data "$name.npz" --text-encoder "$encoder" --yes
  run ddm-site review "${at[@]}"
  run ddm-site release "${at[@]}"
  run ddm-site submit "${at[@]}" --to consortium/inbox
done
run ddm-coord admit --coordinator consortium
run ddm-coord assemble ensemble --coordinator consortium

say "Prompts: one a line, taken in turn"
cat "$here/prompts.txt"
run ddm-coord sample ensemble --root "$root" --prompts "$here/prompts.txt" \
  --text-encoder "$encoder" --guidance 2 --count "$samples" --steps 15 --out samples
run python "$here/told.py" samples

say "No word of a caption is in anything that left"
for name in north south; do
  if grep -rl -e handwritten -e pencil -e 'written by hand' "$name/outbox"; then exit 1; fi
done
echo "none found"
say "Done: $out/samples/grid.png, one column after the other from zero to nine and again"
