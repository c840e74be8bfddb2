#!/bin/bash
# One array task for each part of a command that takes --part: encoding, embedding, sampling.
#   sbatch --array=1-8 examples/islands/part.sh ddm-coord sample ensemble --root sha256:… --out samples
# When all tasks are done, the same command without --part puts them together and checks them.
#SBATCH --job-name=part
#SBATCH --nodes=1
#SBATCH --gpus=1
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
# a task that was requeued goes on where it was
exec "$@" --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
