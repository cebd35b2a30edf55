# shellcheck shell=bash
# What the Slurm scripts share: the site's environment, checked inputs, and a run that survives its time limit.
# Sourced from the repository root by submit_*.{sh,slurm} and hpc_run_all.sh; never run by itself.

KAVA_STOP_SAVED=85   # train.py: "saved after SIGUSR1"; the one status that means "start me again"
KAVA_STOP_EARLY=138  # 128 + SIGUSR1: the signal came before train.py listened, or while it evaluated; nothing is lost
KAVA_LAST_RANK_SECONDS=120  # from the end of one node's ranks to that of all; the main one still writes
KAVA_GUIDE_CONFIGS="llama1b_aug llama1b_aug_nl qwen05b_aug llama3b_aug"
KAVA_ALL_CONFIGS="llama1b_aug llama1b_aug_nl qwen05b_aug qwen05b_aug_nl llama3b_aug llama3b_aug_nl"

kava_say() { printf '[%s] %s\n' "$(date '+%F %T')" "$*"; }

kava_fail() {  # one sentence; in a job in both logs, since a user opens either first
    [[ -z ${SLURM_JOB_ID:-} ]] || kava_say "kava: $*"
    printf 'kava: %s\n' "$*" >&2
    exit "${KAVA_FAIL_STATUS:-2}"
}

kava_site() {  # the user's settings, and the defaults of those the scripts read
    # shellcheck disable=SC1091  # the user's own file
    [[ ! -r configs/site.env ]] || source configs/site.env || kava_fail "configs/site.env fails when bash sources it; see the message above"
    KAVA_SEEDS=${KAVA_SEEDS:-42 123 456}
    KAVA_MAX_REQUEUES=${KAVA_MAX_REQUEUES:-20}
    local seed seen=" " wrong="KAVA_SEEDS in configs/site.env is '$KAVA_SEEDS'; write whole numbers with one space between, such as \"42 123 456\", each once and no 0 in front"
    [[ $KAVA_SEEDS =~ ^(0|[1-9][0-9]*)(\ (0|[1-9][0-9]*))*$ ]] || kava_fail "$wrong"
    for seed in $KAVA_SEEDS; do
        [[ $seen != *" $seed "* ]] || kava_fail "$wrong"
        seen+="$seed "
    done
    [[ $KAVA_MAX_REQUEUES =~ ^[0-9]+$ ]] || kava_fail "KAVA_MAX_REQUEUES in configs/site.env is '$KAVA_MAX_REQUEUES'; write a whole number"
}

kava_is_passed() {  # whether jobs get this variable of the submitter
    [[ $1 == @(HF_*|KAVA_*|WANDB_*|TRANSFORMERS_CACHE) ]]
}

kava_passed() {  # ",HF_HOME,WANDB_MODE": those that are exported here, by name, as sbatch --export takes them
    local name
    for name in $(compgen -e); do ! kava_is_passed "$name" || printf ',%s' "$name"; done
}

# In a session of its own: at a terminal an interactive shell in the background stops itself, and never ends.
kava_shell_exports() {  # the same of the user's ~/.bashrc, where the guide writes them and from where sbatch --export=CONFIG=x does not take them
    local entry name
    while IFS= read -rd '' entry; do
        name=${entry%%=*}
        # shellcheck disable=SC2163  # "NAME=value"
        if kava_is_passed "$name" && [[ -z ${!name+set} ]]; then export "$entry"; fi
    done < <(timeout -k 5 30 setsid bash -ic 'env -0' 2>/dev/null </dev/null)
}

kava_call() {  # kava_call NAME: what squeue shows of a job that was submitted without a name of its own
    local job=${SLURM_JOB_ID:-}
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    [[ ${SLURM_JOB_NAME:-} == @(kava-train|kava-seeds|kava-nodes|kava-aggregate) ]] || return 0
    ! command -v scontrol >/dev/null || scontrol update "JobId=$job" "JobName=$1" 2>/dev/null || kava_say "job $job keeps its name"
}

kava_check_config() {  # the name or path in $1, as the last word before anything is built from it
    [[ $1 =~ ^[A-Za-z0-9_./][A-Za-z0-9_./-]*$ ]] || kava_fail "CONFIG '$1' is no configuration name: letters, digits and _ . / - only"
    [[ -f $1 || -f configs/$1.yaml ]] || kava_fail "configuration '$1' is neither a file nor a name in configs/; $(kava_nearest "$1")"
}

kava_check_dir() {  # a directory that a job makes and writes into
    [[ $1 =~ ^[A-Za-z0-9_./][A-Za-z0-9_./+=@:-]*$ ]] || kava_fail "OUTPUT_DIR '$1' is no directory name that a job can use: letters, digits and _ . / + = @ : - only, no - in front"
}

kava_check_numbers() {  # Slurm's own variables: bash arithmetic runs the command in a word such as x[$(command)]
    local name
    for name in SLURM_JOB_ID SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID SLURM_RESTART_COUNT SLURM_GPUS_ON_NODE SLURM_CPUS_PER_TASK SLURM_JOB_NUM_NODES SLURM_NODEID; do
        [[ ${!name:-0} =~ ^[0-9]{1,18}$ ]] || kava_fail "$name is '${!name}', but Slurm sets it to a whole number; leave it alone, or unset it"
    done
}

kava_check_seed() {
    [[ $1 =~ ^[0-9]{1,10}$ ]] || kava_fail "SEED '$1' is no seed: a whole number such as 42"
}

kava_nearest() {  # "did you mean ...?" by edit distance, in awk: a login node need not have a Python that runs kava
    find configs -maxdepth 1 -name '*.yaml' | sed 's|.*/||; s|\.yaml$||' | sort | awk -v typed="$1" '
        function least(a, b, c) { return a < b ? (a < c ? a : c) : (b < c ? b : c) }
        function distance(s, t,    i, j, d) {
            for (i = 0; i <= length(s); i++) d[i, 0] = i
            for (j = 0; j <= length(t); j++) d[0, j] = j
            for (i = 1; i <= length(s); i++) for (j = 1; j <= length(t); j++)
                d[i, j] = least(d[i-1, j] + 1, d[i, j-1] + 1, d[i-1, j-1] + (substr(s, i, 1) != substr(t, j, 1)))
            return d[length(s), length(t)]
        }
        { if (NR == 1 || distance(typed, $0) < best) { best = distance(typed, $0); name = $0 } }
        END { print name == "" ? "configs/ is empty" : "did you mean " sprintf("%c", 39) name sprintf("%c", 39) "?" }'
}

kava_name() { local base=${1##*/}; printf '%s' "${base%.yaml}"; }

kava_modules() {
    # shellcheck disable=SC1090  # the path is the site's
    [[ ! -r ${KAVA_MODULE_INIT:-} ]] || source "$KAVA_MODULE_INIT"
    if ! command -v module >/dev/null; then
        [[ -z ${KAVA_MODULES:-} ]] || kava_say "no module command on $(hostname): KAVA_MODULES ($KAVA_MODULES) left out"
        return 0
    fi
    local item
    for item in ${KAVA_MODULE_PATHS:-}; do module use --append "$item"; done
    for item in ${KAVA_MODULES:-}; do module load "$item" || kava_say "module load $item failed; going on without it"; done
}

kava_activate() {
    local conda candidate
    conda=$(command -v conda)
    for candidate in ~/{miniconda3,miniforge3,anaconda3}/bin/conda; do [[ -n $conda || ! -x $candidate ]] || conda=$candidate; done
    if [[ -n ${KAVA_ACTIVATE:-} ]]; then
        eval "$KAVA_ACTIVATE" || kava_fail "KAVA_ACTIVATE in configs/site.env failed: $KAVA_ACTIVATE"
    elif [[ -r .venv/bin/activate ]]; then
        source .venv/bin/activate
    elif [[ -n $conda ]]; then
        eval "$("$conda" shell.bash hook)"
        conda activate kava || kava_say "conda has no environment 'kava'; trying the python3 on PATH"
    fi
}

kava_check_python() {
    local check reason
    check='import importlib.util as u, sys, kava
missing = [m for m in ("torch", "transformers", "peft", "pydantic", "yaml", "tyro") if u.find_spec(m) is None]
sys.exit("no " + ", ".join(missing) if missing else 0)'
    reason=$(python3 -c "$check" 2>&1) ||
        kava_fail "$(command -v python3 || echo python3) on $(hostname) cannot run kava (${reason##*$'\n'}): set KAVA_ACTIVATE in configs/site.env to the command that activates your environment"
}

kava_setup() {  # a job's environment from nothing: the submitter's may be gone, PATH and HOME with it
    HOME=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)} USER=${USER:-$(id -un)}
    export PATH HOME USER LANG=${LANG:-C.UTF-8} PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
    kava_shell_exports
    unset SLURM_EXPORT_ENV  # else every srun inside would hand on the same empty environment
    command -v scontrol >/dev/null || { [[ -r /etc/profile ]] && source /etc/profile; }
    kava_site
    command -v scontrol >/dev/null || kava_say "scontrol not found: this job cannot requeue itself; add Slurm's bin directory to PATH in configs/site.env"
    kava_modules
    kava_activate
    kava_check_python
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
    # What the command that continues this job must say again: --resume refuses another number of processes, --export drops the shell's seeds.
    again_gres="" again_seeds=""
    ((${SLURM_GPUS_ON_NODE:-1} == 1)) || again_gres="--gres=gpu:$SLURM_GPUS_ON_NODE "
    [[ $KAVA_SEEDS == "42 123 456" ]] || again_seeds=",KAVA_SEEDS='$KAVA_SEEDS'"
    kava_say "job ${SLURM_JOB_ID:-none} on $(hostname), start $((${SLURM_RESTART_COUNT:-0} + 1)), $(python3 --version), $(command -v python3)"
    kava_say "models: ${HF_HUB_CACHE:-${HF_HOME:-$HOME/.cache/huggingface}} (HF_HOME, in configs/site.env)"
    ! command -v nvidia-smi >/dev/null || nvidia-smi -L
}

kava_forward() { ((${#KAVA_CHILDREN[@]} == 0)) || kill "-$1" "${KAVA_CHILDREN[@]}" 2>/dev/null; }

kava_start() {  # kava_start RANKS COMMAND...: in the background, one process per rank, its process ids in KAVA_CHILDREN
    local ranks=$1 rank nodes=${KAVA_NODES:-1} first=0 port=$((20000 + ${SLURM_JOB_ID:-$$} % 20000))
    shift
    ((nodes == 1)) || first=$((SLURM_NODEID * ranks))
    KAVA_CHILDREN=()
    trap 'kava_forward USR1' USR1
    trap 'kava_forward TERM' TERM
    trap 'kava_forward INT' INT
    if ((ranks * nodes == 1)); then "$@" & KAVA_CHILDREN=("$!"); return; fi
    for ((rank = 0; rank < ranks; rank++)); do
        env RANK=$((first + rank)) LOCAL_RANK=$rank WORLD_SIZE=$((ranks * nodes)) LOCAL_WORLD_SIZE="$ranks" \
            MASTER_ADDR="${MASTER_ADDR:-127.0.0.1}" MASTER_PORT=$port "$@" &
        KAVA_CHILDREN+=("$!")
    done
}

kava_run() {  # kava_run RANKS COMMAND...: to its end, handing on signals; returns the first status that is not 0
    local child code status=0 running=1
    kava_start "$@"
    while ((running)); do
        sleep 1  # traps run between commands, so a signal is handed on within a second
        running=0
        for child in "${KAVA_CHILDREN[@]}"; do
            if kill -0 "$child" 2>/dev/null; then running=1; continue; fi
            wait "$child"; code=$?
            ((status)) || status=$code
        done
        # A rank that died leaves the others waiting in a collective for ever.
        if ((running && status)) && ! kava_is_stop "$status"; then kava_forward KILL; fi
    done
    return "$status"
}

kava_rendezvous() {  # MASTER_ADDR: where the first node of the job is reached; every node needs as many GPUs as the first
    local first
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_ADDR=$(scontrol show node -o "$first" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    export MASTER_ADDR=${MASTER_ADDR:-$first}
}

kava_on_nodes() {  # kava_on_nodes COMMAND...: on every node of the job its share of the ranks. srun hands signals on and returns the highest status
    # shellcheck disable=SC2016  # expanded on the node
    KAVA_NODES=$SLURM_JOB_NUM_NODES exec srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
        --wait="$KAVA_LAST_RANK_SECONDS" bash -c 'source scripts/slurm_common.sh; kava_say "node $SLURM_NODEID ($SLURMD_NODENAME): ${SLURM_GPUS_ON_NODE:-1} of the ranks"
            kava_run "${SLURM_GPUS_ON_NODE:-1}" "$@"' kava "$@"
}

kava_is_stop() { [[ " $KAVA_STOP_SAVED $KAVA_STOP_EARLY 129 130 143 " == *" $1 "* ]]; }

kava_requeue() {
    local job=${SLURM_JOB_ID:-}
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    KAVA_FAIL_STATUS=$KAVA_STOP_SAVED
    ((${SLURM_RESTART_COUNT:-0} < KAVA_MAX_REQUEUES)) ||
        kava_fail "$1 met its time limit $((KAVA_MAX_REQUEUES + 1)) times (KAVA_MAX_REQUEUES in configs/site.env); continue with: $2"
    kava_say "$1 is out of time; requeueing job $job, which will go on from its newest checkpoint"
    scontrol requeue "$job" || kava_fail "Slurm refused to requeue job $job; continue with: $2"
    exit 0
}

kava_finish() {  # kava_finish STATUS WHAT CONTINUE_COMMAND: what a status means for the job, said in its log
    case $1 in
    0) return 0 ;;
    "$KAVA_STOP_SAVED" | "$KAVA_STOP_EARLY") kava_requeue "$2" "$3" ;;
    129 | 130 | 143) KAVA_FAIL_STATUS=$1 kava_fail "$2 was cancelled and is saved; continue with: $3" ;;
    137) KAVA_FAIL_STATUS=137 kava_fail "$2 was killed (137), most likely for memory: raise --mem, or lower training.batch_size; then continue with: $3" ;;
    *) KAVA_FAIL_STATUS=$1 kava_fail "$2 failed with status $1; the reason stands above and in the .err log; then continue with: $3" ;;
    esac
}

kava_check_numbers
