#!/bin/bash
# One array task per island: sbatch --array=1-4 examples/islands/slurm.sh
# after `run.py setup` on the login node, and before `run.py finish` there.
#SBATCH --job-name=island
#SBATCH --nodes=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
# a task that was requeued goes on from its checkpoint
srun python examples/islands/run.py train "$SLURM_ARRAY_TASK_ID" --out "${OUT:-islands-run}"
