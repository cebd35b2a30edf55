#!/bin/bash
# One training run:            sbatch --export=SEED=42 submit_kava.sh
# another configuration:       sbatch --export=CONFIG=qwen05b_aug,SEED=42 submit_kava.sh
# going on with an older run:  sbatch --export=SEED=42,OUTPUT_DIR=outputs/seed_12345 submit_kava.sh
# Site settings (modules, environment, HF_HOME): configs/site.env. Logs: logs/kava_<job>.{out,err}.
#SBATCH --job-name=kava-train
#SBATCH --partition=gpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=48:00:00
#SBATCH --output=logs/kava_%j.out
#SBATCH --error=logs/kava_%j.err
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

# shellcheck source=scripts/slurm_common.sh
{ cd "${SLURM_SUBMIT_DIR:-.}" && source scripts/slurm_common.sh; } || { echo "kava: run sbatch submit_kava.sh in the root of the checkout" >&2; exit 2; }

CONFIG=${CONFIG:-llama1b_aug} SEED=${SEED:-42} OUTPUT_DIR=${OUTPUT_DIR:-outputs/seed_$SLURM_JOB_ID}
kava_check_config "$CONFIG"
kava_check_seed "$SEED"
kava_check_dir "$OUTPUT_DIR"
kava_setup
kava_call "kava-$(kava_name "$CONFIG")-$SEED"

kava_run "${SLURM_GPUS_ON_NODE:-1}" python3 train.py --config "$CONFIG" --output_dir "$OUTPUT_DIR" --seed "$SEED" --resume "${KAVA_TRAIN_ARGS[@]}"
kava_finish $? "$CONFIG, seed $SEED, in $OUTPUT_DIR" "sbatch $again_gres--export=CONFIG=$CONFIG,SEED=$SEED,OUTPUT_DIR=$OUTPUT_DIR submit_kava.sh"
kava_say "done: $OUTPUT_DIR/best_checkpoint"
