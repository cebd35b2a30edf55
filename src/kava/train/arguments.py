"""From a configuration to Hugging Face's `TrainingArguments`."""

import os
from pathlib import Path
from typing import Any

from kava.config import Config
from kava.errors import UserError, nearest
from kava.methods import METHODS
from kava.runtime.device import choose_device
from kava.runtime.optional_packages import require

LOGS = "logs"
# What trackio files our runs under; W&B reads WANDB_PROJECT.
PROJECT = "kava"


def runs_on_cpu(config: Config) -> bool:
    """Whether the configuration, or the lack of a GPU, keeps a run on the CPU."""
    return choose_device(config.system.device, "system.device") == "cpu"


def training_arguments(config: Config, output_dir: Path, report_to: list[str], run_name: str) -> Any:
    """The arguments of the Trainer. TensorBoard writes to `output_dir/logs`.

    Raises:
        UserError: an unknown optimizer, or a device that is not there.
    """
    from transformers import TrainingArguments

    training, system = config.training, config.system
    _check(config)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(output_dir / LOGS)
    on_cpu = runs_on_cpu(config)
    return TrainingArguments(
        output_dir=str(output_dir),
        run_name=run_name,
        seed=training.seed,
        data_seed=training.seed,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        lr_scheduler_type=training.lr_scheduler,
        warmup_steps=training.warmup_ratio,
        optim=training.optimizer,
        logging_strategy="steps",
        logging_steps=training.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="epoch" if training.eval_steps is None else "steps",
        eval_steps=training.eval_steps,
        save_strategy="epoch" if training.save_steps is None else "steps",
        save_steps=training.save_steps or 500,
        save_total_limit=training.save_total_limit,
        metric_for_best_model="accuracy",
        greater_is_better=True,
        bf16=system.mixed_precision == "bf16",
        fp16=system.mixed_precision == "fp16",
        use_cpu=on_cpu,
        dataloader_num_workers=training.num_workers,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        label_names=[],
        report_to=report_to,
        project=PROJECT,
        trackio_space_id=None,
        disable_tqdm=True,
        log_level="warning",
        # Coconut's first stage and T = 0 pass the projection by; elsewhere every trainable parameter gets a gradient.
        ddp_find_unused_parameters=METHODS[config.method].curriculum == "replace_steps" or config.latent.num_iterations == 0,
        restore_callback_states_from_checkpoint=True,
    )


def _check(config: Config) -> None:
    from transformers.training_args import OptimizerNames

    training = config.training
    optimizers = [str(name.value) for name in OptimizerNames]
    if training.optimizer not in optimizers:
        raise UserError(f"training.optimizer '{training.optimizer}' is unknown{nearest(training.optimizer, optimizers)}")
    if training.optimizer == "adamw_8bit" or any(kind in training.optimizer for kind in ("bnb", "paged", "lion", "ademamix")):
        require("bitsandbytes", f"training.optimizer {training.optimizer}", "set it to adamw_torch")
