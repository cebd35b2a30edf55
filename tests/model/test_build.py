"""A base model as a run loads it: what its weights are stored in, and what a missing package says."""

from typing import Any

import pytest
import torch

from helpers.tiny import HAS_FLASH
from kava.config import build_config
from kava.errors import UserError
from kava.model.build import load_base, stored_dtype


def test_a_frozen_base_is_stored_in_what_a_gpu_computes_in_unless_told_otherwise() -> None:
    def stored(on_gpu: bool, **overrides: Any) -> torch.dtype:
        return stored_dtype(build_config({}, "a test", overrides), on_gpu)

    assert stored(on_gpu=True) == torch.bfloat16
    assert stored(on_gpu=False) == torch.float32
    for other in (
        {"lora.enabled": False},
        {"system.mixed_precision": "no"},
        {"system.mixed_precision": "fp16"},
        {"model.dtype": "float32"},
    ):
        assert stored(on_gpu=True, **other) == torch.float32
    assert stored(on_gpu=False, **{"model.dtype": "bfloat16"}) == torch.bfloat16
    # A configuration from before there was a choice, and what it chose on a CPU, are the same run.
    assert build_config({}, "a test", {"model.dtype": "float32"}).fingerprint() == build_config({}, "a test").fingerprint()


@pytest.mark.skipif(HAS_FLASH, reason="flash-attn is installed")
def test_flash_attention_without_its_package_is_refused() -> None:
    with pytest.raises(
        UserError, match="flash_attention_2 needs the package flash-attn.* pip install 'kava-latent\\[flash\\]', or set it to sdpa"
    ):
        load_base("nowhere", build_config({}, "a test", {"model.attn_implementation": "flash_attention_2"}))
