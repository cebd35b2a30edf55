#!/bin/bash
# Submits, for each configuration, an array of its seeds and an aggregation that waits for all of them.
#
#     ./hpc_run_all.sh                              the guide's four configurations
#     ./hpc_run_all.sh llama1b_aug qwen05b_aug      these
#     ./hpc_run_all.sh --all                        the six of the paper's Table 6
#     ./hpc_run_all.sh --dry-run [...]              print the commands, submit nothing
#
# Run again it finishes what was cut off: finished seeds return at once. Jobs get HF_*, KAVA_* and WANDB_*
# of this shell. Site settings: configs/site.env (from site.env.example).

cd "$(dirname "${BASH_SOURCE[0]}")" || exit 2
# shellcheck source=scripts/slurm_common.sh
source scripts/slurm_common.sh || exit 2

submit() {  # leaves the job id in $job; a dry run prints the command instead
    job="<job>"
    if ((dry_run)); then printf '  sbatch %s\n' "$*"; return; fi
    job=$("${without[@]}" sbatch --parsable "$@") || return 1
    job=${job%%;*}
}

submit_config() {
    local name array aggregate_partition=() without=()
    name=$(kava_name "$1")
    if ((!dry_run)) && [[ -n $(squeue -h -u "$USER" -n "kava-$name" -o %A) ]]; then
        kava_fail "$1 is already queued (squeue -n kava-$name); wait for it, or scancel -n kava-$name"
    fi
    echo "$1:"
    [[ -z ${KAVA_AGGREGATE_PARTITION:-} ]] || aggregate_partition=(--partition="$KAVA_AGGREGATE_PARTITION")
    submit --job-name="kava-$name" --array="0-$((${#seeds[@]} - 1))" --export="CONFIG=$1$(kava_passed)" submit_multi_seed.slurm ||
        kava_fail "sbatch refused the seeds of $1; its reason stands above"
    array=$job
    without=(env -u SBATCH_GRES -u SBATCH_GPUS -u SBATCH_GPUS_PER_NODE -u SBATCH_GPUS_PER_TASK)  # the aggregation needs no GPU
    # afterok, not afterany: a mean over two of three seeds must never pass for the paper's number.
    submit --job-name="kava-$name-mean" "${aggregate_partition[@]}" --dependency="afterok:$array" --kill-on-invalid-dep=yes \
        --export="CONFIG=$1$(kava_passed)" submit_aggregate.slurm || kava_fail "sbatch refused the aggregation of $1; its seeds are queued as job $array"
    ((dry_run)) || printf '  job %s: seeds %s\n  job %s: aggregation into outputs/%s_multi_seed/aggregated_results.yaml\n' "$array" "$KAVA_SEEDS" "$job" "$name"
}

dry_run=0 configs=()
for argument in "$@"; do
    case $argument in
    --dry-run) dry_run=1 ;;
    --all) read -ra configs <<<"$KAVA_ALL_CONFIGS" ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    -*) kava_fail "unknown option '$argument'; ./hpc_run_all.sh --help lists them" ;;
    *) configs+=("$argument") ;;
    esac
done
((${#configs[@]})) || read -ra configs <<<"$KAVA_GUIDE_CONFIGS"

[[ -e configs/site.env ]] || cp configs/site.env.example configs/site.env 2>/dev/null
kava_site
USER=${USER:-$(id -un)}
read -ra seeds <<<"$KAVA_SEEDS"
for config in "${configs[@]}"; do kava_check_config "$config"; done
((dry_run)) || command -v sbatch >/dev/null || kava_fail "there is no sbatch here: run this on a login node of a Slurm cluster, or python run_multi_seed.py --config ${configs[0]} on this machine"
mkdir -p logs || kava_fail "logs/ cannot be made in $PWD, and Slurm writes no log without it"
for config in "${configs[@]}"; do submit_config "$config"; done
((dry_run)) || echo "watch: squeue -u $USER    logs: tail -f logs/kava_*.out"
