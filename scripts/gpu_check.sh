#!/usr/bin/env bash
# What a GPU shows of this checkout, in less than eight minutes: scripts/gpu_check.sh [OUTPUT_DIR] [PART...]
#
# The tests that need a GPU, then speed and memory of training and decoding; or the named parts. Each part has its own time limit, and all
# together have 470 seconds (named parts their own limits alone). Every figure is a line of JSON as soon as it is known, on the terminal
# and in OUTPUT_DIR/gpu_check.jsonl. One process at a time uses the card. A part that fails ends in exit code 1, and the others go on.
# Needs: torch with CUDA, the packages of pyproject.toml, liger-kernel for the fused kernels; for the tests pytest, pytest-timeout, hypothesis.
set -uo pipefail
cd "$(dirname "$0")/.."
output=${1:-outputs/gpu_check}
mkdir -p "$output"
output=$(cd "$output" && pwd)
shift || true
python=${PYTHON:-python3}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
    { echo "gpu_check: torch sees no GPU here; run this on a machine that has one" >&2; exit 2; }

failed=0
part() { # LIMIT NAME
    local limit=$1 left=$((total - SECONDS)) status
    [ "$left" -gt "$limit" ] || limit=$left
    [ "$limit" -ge "${least[$2]:-20}" ] || { failed=1; echo "gpu_check: too little time is left for $2; run it by its name" >&2; return; }
    echo "== $2" >&2
    if [ "$2" = tests ]; then
        # A test file that needs a package this machine lacks must not keep the others from running.
        OMP_NUM_THREADS=1 timeout -k 5 "$limit" "$python" -m pytest -q -p no:cacheprovider --continue-on-collection-errors -m gpu tests 2>&1 |
            tee "$output/tests.txt" | tail -n 3
    else
        timeout -k 5 "$limit" "$python" scripts/gpu_check.py "$2" "$output" "$limit" 2>>"$output/gpu_check.log" | tee -a "$output/gpu_check.jsonl"
    fi
    status=${PIPESTATUS[0]}
    [ "$status" -eq 0 ] || { failed=1; echo "gpu_check: $2 ended with code $status (124: its $limit s were over); see $output" >&2; }
}

declare -A limits=(
    [tests]=90 [product]=30 [waits]=30 [exact]=60 [against]=60 [llama]=80 [smollm2]=60 [decoding]=60
    [train-llama]=160 [train-smollm2]=120 [profile]=60
)
# A training in less time logs nothing.
declare -A least=([train-llama]=120 [train-smollm2]=90)
if [ $# -gt 0 ]; then
    total=86400
else
    total=470
    set -- tests product waits exact llama train-llama decoding against train-smollm2
fi
for name in "$@"; do part "${limits[$name]:-60}" "$name"; done
exit $failed
