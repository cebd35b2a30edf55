"""The six shipped configurations hold the values of the paper's Table 6 (method.md, section 8)."""

import re
from pathlib import Path

import pytest

from kava.config import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
LLAMA_1B, LLAMA_3B = "meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-3B-Instruct"
QWEN = "Qwen/Qwen2.5-0.5B-Instruct"
AUG, AUG_NL = ("whynlp/gsm8k-aug", "equation"), ("whynlp/gsm8k-aug-nl", "natural_language")

# model, data, lr, alpha1, alpha2, KV loss, layerwise_std, lambda, projection, weight decay, epochs
TABLE_6 = {
    "llama1b_aug": (LLAMA_1B, AUG, 8e-4, 10, 1, "smooth_l1", True, 0.1, True, 0.1, 10),
    "llama1b_aug_nl": (LLAMA_1B, AUG_NL, 8e-4, 10, 1, "smooth_l1", True, 0.1, True, 0.1, 10),
    "qwen05b_aug": (QWEN, AUG, 5e-4, 10, 1, "mse", False, 0.1, True, 0.01, 10),
    "qwen05b_aug_nl": (QWEN, AUG_NL, 8e-4, 10, 1, "mse", True, 0.1, True, 0.1, 10),
    "llama3b_aug": (LLAMA_3B, AUG, 2e-4, 20, 2, "smooth_l1", False, 0.1, True, 0.1, 5),
    "llama3b_aug_nl": (LLAMA_3B, AUG_NL, 2e-4, 20, 2, "smooth_l1", False, 0.0, False, 0.1, 5),
}


@pytest.mark.parametrize("name", TABLE_6)
def test_values_of_table_6(name):
    config = load_config(CONFIGS / f"{name}.yaml")
    loss, training = config.loss, config.training
    assert (
        config.model.name, (config.dataset.name, config.dataset.cot_type), training.learning_rate, loss.alpha1_codi, loss.alpha2_kv,
        loss.kv_loss_type, loss.layerwise_std, config.rkv.lambda_, loss.use_projection, training.weight_decay, training.epochs,
    ) == TABLE_6[name]  # fmt: skip


@pytest.mark.parametrize("name", TABLE_6)
def test_what_all_six_share(name):
    config = load_config(CONFIGS / f"{name}.yaml")
    assert config.method == "kava"
    assert (config.latent.num_tokens, config.latent.num_iterations) == (24, 3)
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (128, 32, 0.1)
    assert config.lora.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert config.training.batch_size * config.training.gradient_accumulation_steps == 128
    assert (config.training.optimizer, config.training.lr_scheduler, config.training.max_grad_norm) == ("adamw_torch", "cosine", 2.0)
    assert config.dataset.drop_last_step is True
    assert (config.dataset.train_split, config.dataset.validation_split) == ("train", "validation")
    assert config.system.mixed_precision == "bf16"
    assert list(config.evaluation.datasets) == ["gsm8k", "gsm8k-hard", "svamp"]


@pytest.mark.parametrize("name", TABLE_6)
def test_the_launch_command_opens_the_file_and_every_number_has_a_source(name):
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"# python train.py --config configs/{name}.yaml --output_dir outputs/{name}/seed_42 --seed 42"
    without = [line for line in lines if re.match(r"\s+\w+: .*\d", line.partition("#")[0]) and not re.search(r"# .*(\[[PGMH]\]|\d)", line)]
    assert without == []


def test_accelerates_own_file_splits_the_model_and_keeps_the_effective_batch() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    path = CONFIGS / "accelerate" / "fsdp.yaml"
    launched = load_config_from_file(str(path))
    assert (launched.distributed_type, launched.fsdp_config["fsdp_version"]) == ("FSDP", 2)
    command = path.read_text(encoding="utf-8").splitlines()[0]
    assert command.startswith("# accelerate launch --config_file configs/accelerate/fsdp.yaml train.py --config configs/llama3b_aug.yaml ")
    batch_size = int(re.search(r"--training.batch_size (\d+)", command)[1])
    config = load_config(CONFIGS / "llama3b_aug.yaml", {"system.fsdp": True, "training.batch_size": batch_size})
    assert batch_size * config.training.gradient_accumulation_steps * launched.num_processes == 128
