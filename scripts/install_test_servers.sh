#!/usr/bin/env bash
# Install the system programs that some tests start: Slurm, pdflatex, Chromium (Debian or Ubuntu, as root).
#
# Tolerant by design: what cannot be installed is named, and the tests that need it skip with the same reason.
set -uo pipefail
export DEBIAN_FRONTEND=noninteractive PATH="$PATH:/usr/sbin:/sbin"
updated=no

say() { echo "install_test_servers: $*"; }

# need WHAT PROGRAM PACKAGE...: install the packages unless the program is there.
need() {
    local what=$1 program=$2
    shift 2
    if command -v "$program" >/dev/null; then
        say "$what: present"
        return
    fi
    if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
        say "$what: NOT INSTALLED (needs apt-get and root); its tests will skip"
        return
    fi
    if [ "$updated" = no ]; then
        timeout 180 apt-get update -q >/dev/null 2>&1 </dev/null || say "apt-get update failed; trying with the lists at hand"
        updated=yes
    fi
    if timeout 600 apt-get install -y -q --no-install-recommends "$@" >/tmp/kava_apt.log 2>&1 </dev/null && command -v "$program" >/dev/null; then
        say "$what: installed"
    else
        say "$what: NOT INSTALLED (last words: $(tail -n 1 /tmp/kava_apt.log)); its tests will skip"
    fi
}

need "Slurm" slurmctld slurmctld slurmd slurm-client munge
need "pdflatex" pdflatex texlive-latex-base texlive-latex-recommended
if grep -rqs "mark\.browser" tests; then
    need "Chromium" chromium chromium
fi
exit 0
