#!/usr/bin/env bash
#SBATCH --job-name=ruvlm-translate
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=12
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --output=logs/%x-%A-%a.out
#SBATCH --open-mode=append
#
# Translate a dataset in parts, a GPU each; the last part to finish makes the whole:
#
#   sbatch slurm/translate.sh IN --out OUT engine=memory+hf model=my-translator
#   sbatch --gres=none --array=0-3 slurm/translate.sh IN --out OUT memory=easy_vqa.en-ru    # no model, no GPU
set -euo pipefail

# sbatch runs a copy of this file in a folder of its own
here=$(dirname "$0")
[[ -f $here/env.sh ]] || here=${SLURM_SUBMIT_DIR:-.}/slurm
# shellcheck source=/dev/null
source "$here/env.sh"

code=0
ranks translate --part "$(part)" "$@" || code=$?
finish "$code" translate
