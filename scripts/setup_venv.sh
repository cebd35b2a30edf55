#!/usr/bin/env bash
# Bring a virtual environment in step with a requirements file: scripts/setup_venv.sh .venv requirements.txt [python3]
#
# Does nothing when the environment already answers to the same pins; a broken one is made anew.
set -euo pipefail

venv=${1:?usage: setup_venv.sh VENV REQUIREMENTS [PYTHON]}
requirements=${2:?usage: setup_venv.sh VENV REQUIREMENTS [PYTHON]}
base_python=${3:-python3}
cd "$(dirname "$0")/.."

fail() { echo "setup_venv: $*" >&2; exit 2; }

"$base_python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
    fail "$base_python is absent or older than Python 3.10; name a newer one: make BASE_PYTHON=python3.11 ..."

# Two makes at once must not write one environment; without flock (macOS) they are on their own.
if [ -z "${KAVA_SETUP_LOCKED:-}" ] && command -v flock >/dev/null; then
    mkdir -p "$(dirname "$venv")"
    KAVA_SETUP_LOCKED=1 exec flock "$(dirname "$venv")" bash scripts/setup_venv.sh "$venv" "$requirements" "$base_python"
fi

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    [ ! -e "$venv" ] || [ -f "$venv/pyvenv.cfg" ] || [ -z "$(ls -A "$venv")" ] ||
        fail "$venv exists and is no virtual environment; move it away, or name another: make VENV=DIR ..."
    rm -rf "$venv"
    echo "setup_venv: creating $venv with $("$base_python" --version)"
    "$base_python" -m venv "$venv"
fi

stamp="$venv/.installed-$(basename "$requirements" .txt)"
# The root is part of the fingerprint: an editable install points at one checkout.
fingerprint=$(cat requirements*.txt pyproject.toml <(pwd) | "$venv/bin/python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$fingerprint" ] && "$venv/bin/python" -c 'import kava' 2>/dev/null; then
    exit 0
fi
echo "setup_venv: installing $requirements into $venv (a minute or two the first time)"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check -r "$requirements"
echo "$fingerprint" >"$stamp"
# The development pins include the others.
[ "$requirements" != requirements-dev.txt ] || echo "$fingerprint" >"$venv/.installed-requirements"
