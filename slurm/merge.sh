#!/usr/bin/env bash
#SBATCH --job-name=ruvlm-merge
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=4G
#SBATCH --time=02:00:00
#SBATCH --requeue
#SBATCH --output=logs/%x-%j.out
#SBATCH --open-mode=append
#
# Merge a recipe's adapter into its base, on a node without GPUs: the model is never in memory as a whole:
#
#   sbatch slurm/merge.sh RECIPE eval.adapter=latest
#   sbatch slurm/merge.sh RUN --base DIR --out DIR
set -euo pipefail

# sbatch runs a copy of this file in a folder of its own
here=$(dirname "$0")
[[ -f $here/env.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/slurm
# shellcheck source=/dev/null
source "$here/env.sh"

usage $# "sbatch slurm/merge.sh RECIPE key=value ..., or RUN --base DIR --out DIR"

code=0
ranks merge "$@" || code=$?
# options are the merge's own
recipe=()
for word in "$@"; do
    [[ $word != -* ]] || break
    recipe+=("$word")
done
[[ " $* " != *" --base "* ]] || recipe=()
finish "$code" merge "${recipe[@]}"
