#!/bin/bash
# One array task per part of the samples: sbatch --array=1-8 examples/islands/sample.sh
# after `run.py finish`, which draws a few. When all tasks are done, the same command without --part
# puts them together.
#SBATCH --job-name=sample
#SBATCH --nodes=1
#SBATCH --gpus=1
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
FOLDER="${OUT:-islands-run}"
srun ddm-coord sample "$FOLDER/ensemble" --root "$(cat "$FOLDER/fingerprint.txt")" \
  --count 50000 --in-flight 1024 --no-png --out "$FOLDER/samples-50000" \
  --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
