"""Optional 4-bit base models and compiled passes; a `UserError` says so where they are not available."""

import os
import shutil
from typing import Any

import torch

from kava.config import Config
from kava.errors import UserError
from kava.model.backbone import Backbone

COMPUTE_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What each `system.mixed_precision` computes in."""


def four_bit(config: Config) -> Any:
    """The transformers configuration for a base model in NF4 with double quantization (QLoRA, arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=COMPUTE_DTYPES[config.system.mixed_precision],
    )


def keep_gradients(causal_lm: Any) -> None:
    """Keep 4-bit weights as loaded: on some CPUs the first pass without gradients repacks them into a form that supports no gradients."""
    for module in causal_lm.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


def check_compiler() -> None:
    """Check that there is a compiler for torch to call.

    Raises:
        UserError: there is none.
    """
    compiler = os.environ.get("CXX", "g++")
    if not torch.cuda.is_available() and shutil.which(compiler) is None:
        raise UserError(f"system.compile needs a C++ compiler on a CPU, and {compiler} is not on PATH: install g++, or set it to false")


def compile_passes(backbone: Backbone) -> None:
    """Compile the latent passes and decoding (`system.compile`).

    Raises:
        UserError: the machine has no compiler for torch to call.
    """
    check_compiler()
    backbone.compile_passes()
