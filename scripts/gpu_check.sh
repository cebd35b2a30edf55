#!/usr/bin/env bash
# What a GPU shows of this checkout, in some eight minutes: scripts/gpu_check.sh [OUTPUT_DIR] [PART...]
#
# The tests that need a GPU, then speed and memory of training and decoding. Each part has its own time limit; every figure is a line
# of JSON as soon as it is known, on the terminal and in OUTPUT_DIR/gpu_check.jsonl. One process at a time uses the card.
# Needs: torch with CUDA, the packages of pyproject.toml, pytest, and liger-kernel for the fused kernels.
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
    echo "== $2" >&2
    timeout "$1" "$python" scripts/gpu_check.py "$2" "$output" 2>>"$output/gpu_check.log" | tee -a "$output/gpu_check.jsonl"
    local status=${PIPESTATUS[0]}
    [ "$status" -eq 0 ] || { failed=1; echo "gpu_check: $2 ended with code $status (124: its ${1} s were over); see $output/gpu_check.log" >&2; }
}

declare -A limits=(
    [product]=30 [waits]=30 [exact]=60 [against]=60 [llama]=80 [smollm2]=60 [decoding]=60 [train-llama]=160 [train-smollm2]=120 [profile]=60
)
if [ $# -gt 0 ]; then
    for name in "$@"; do part "${limits[$name]:-60}" "$name"; done
    exit $failed
fi
for name in product waits exact llama against train-llama train-smollm2 decoding; do part "${limits[$name]}" "$name"; done
echo "== tests" >&2
# A test file that needs a package this machine lacks must not keep the others from running.
OMP_NUM_THREADS=1 timeout 120 "$python" -m pytest -q -p no:cacheprovider --continue-on-collection-errors -m gpu tests 2>&1 | tee "$output/tests.txt" | tail -n 3 || failed=1
exit $failed
