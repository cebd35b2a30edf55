"""What a model's settings need of this machine: packages, a GPU, a compiler. Asked before minutes are spent on a base model."""

import torch

from kava.config import Config
from kava.losses.fused import check_fused_available
from kava.model.quantization import check_compiler
from kava.runtime.optional_packages import require


def check_packages(config: Config) -> None:
    """Check that the packages are installed without which the base model cannot be loaded.

    Raises:
        UserError: one is not.
    """
    if config.model.attn_implementation == "flash_attention_2":
        require("flash-attn", "model.attn_implementation flash_attention_2", "set it to sdpa")
    if config.model.quantization == "4bit":
        require("bitsandbytes", "model.quantization 4bit", "set it to none")


def check_requirements(config: Config, device: str | torch.device) -> None:
    """Check all that training a model on this device needs.

    Raises:
        UserError: something is missing.
    """
    check_packages(config)
    if config.system.fused_cross_entropy:
        check_fused_available(device)
    if config.system.compile:
        check_compiler()
