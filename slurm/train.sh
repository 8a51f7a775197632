#!/usr/bin/env bash
#SBATCH --job-name=ruvlm-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --output=logs/%x-%j.out
#SBATCH --open-mode=append
#
# Train one recipe, on a node of 8 GPUs unless sbatch is told otherwise:
#
#   mkdir -p logs                                    # sbatch does not make it, and a job without it dies unseen
#   sbatch slurm/train.sh RECIPE key=value ...
#   sbatch --nodes=4 slurm/train.sh RECIPE ...       # 32 ranks
#   bash slurm/train.sh RECIPE key=value ...         # without Slurm; RECIPE is demo when left out
#
# Hyperparameters belong to the recipe, a site's settings to env.sh.
set -euo pipefail

# sbatch runs a copy of this file in a folder of its own
here=$(dirname "$0")
[[ -f $here/env.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/slurm
# shellcheck source=/dev/null
source "$here/env.sh"

recipe=${1:-demo}
shift || true

if [[ -n ${SLURM_JOB_ID:-} ]]; then
    nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    export MASTER_ADDR=${MASTER_ADDR:-${nodes%%$'\n'*}}
    # another port at each restart: an orphan rank of the turn before must not meet the new ones
    export MASTER_PORT=${MASTER_PORT:-$((15000 + (SLURM_JOB_ID + 7919 * ${SLURM_RESTART_COUNT:-0}) % 15000))}
fi

code=0
ranks train "$recipe" "$@" || code=$?
finish "$code" train "$recipe" "$@"
