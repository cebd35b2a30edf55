#!/bin/bash
# Installs a Slurm small enough for tests (Debian, Ubuntu; 8 packages): scripts/slurm_install.sh
# Nothing is started: scripts/slurm_testbed.py runs the daemons, in a directory of its own.
set -euo pipefail

needed="slurmctld slurmd sbatch squeue scontrol munged mungekey"
PATH=$PATH:/usr/sbin
missing=""
for program in $needed; do command -v "$program" >/dev/null || missing+=" $program"; done
if [[ -z $missing ]]; then
    echo "Slurm is installed: $needed"
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "slurm_install.sh: no apt-get here; install slurmctld, slurmd, the Slurm client and munge with this system's package manager" >&2
    exit 2
fi
as_root=()
[[ $(id -u) -eq 0 ]] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
# Not slurm-wlm, which brings 43 packages; and no service is wanted on a developer's machine.
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge
