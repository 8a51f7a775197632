#!/usr/bin/env bash
# Install the Slurm that the tests marked `slurm` start, where it is missing: Debian or Ubuntu, as root. Elsewhere those
# tests are skipped and say what they lack.
set -euo pipefail

packages=(slurmctld slurmd slurm-client slurmdbd munge mariadb-server)
programs=(slurmctld slurmd sbatch slurmdbd munged mariadbd)

PATH=$PATH:/usr/sbin:/sbin
for program in "${programs[@]}"; do
    command -v "$program" >/dev/null || missing=yes
done
[[ -n ${missing:-} ]] || exit 0
if ((EUID)) || ! command -v apt-get >/dev/null; then
    echo "no Slurm to test on: as root on Debian, apt-get install ${packages[*]}" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install --no-install-recommends --yes "${packages[@]}" >/dev/null
