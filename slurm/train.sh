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
# Hyperparameters belong to the recipe. RUVLM_VENV names the virtual environment (default: .venv).
set -euo pipefail

recipe=${1:-demo}
shift || true

venv=${RUVLM_VENV:-.venv}
if [[ -n ${RUVLM_VENV:-} || -d $venv ]]; then
    # shellcheck disable=SC1091
    source "$venv/bin/activate"
fi
command -v vlm >/dev/null || { echo "train.sh: no vlm in $venv or on PATH; run make install or set RUVLM_VENV" >&2; exit 2; }

if [[ -z ${SLURM_JOB_ID:-} ]]; then
    exec vlm train "$recipe" "$@"
fi

# NCCL: uncomment what the cluster's network needs.
# export NCCL_SOCKET_IFNAME=ib0       # interface of the first handshake
# export NCCL_IB_HCA=mlx5             # InfiniBand adapters to use
# export NCCL_DEBUG=INFO              # which transport was chosen, and why

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${MASTER_ADDR:-${nodes%%$'\n'*}}
# srun no longer takes this from sbatch (since Slurm 22.05), and would give each rank one core
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# When one rank ends, the others have a minute to end too. --kill-on-bad-exit=1 would kill them at once: the first rank
# to exit with 75, please requeue, would turn srun's code into 143.
code=0
srun --kill-on-bad-exit=0 --wait=60 vlm train "$recipe" "$@" || code=$?
if ((code == 75)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
