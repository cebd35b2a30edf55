"""Settings that exclude each other, or that a method cannot use: refused with the reason and the cure."""

from typing import Any

import pytest

from helpers.config_messages import message
from kava.config import build_config
from kava.errors import UserError


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"lora": {"r": 0}}, "lora.enabled to false"),
        ({"method": "kava", "latent": {"num_tokens": 0}}, "latent.num_tokens is 0, but method kava"),
        ({"method": "codi", "latent": {"num_tokens": 0}}, "latent.num_tokens is 0, but method codi"),
        ({"dataset": {"mini": {"min_steps": 4, "max_steps": 3}}}, "dataset.mini.min_steps is larger than dataset.mini.max_steps"),
        ({"method": "coconut", "latent": {"num_tokens": 0}}, "latent.num_tokens is 0, but method coconut"),
        ({"model": {"mini": {"hidden_size": 36}}}, "model.mini: hidden_size 36 is no multiple of 2 x num_heads 4"),
        ({"model": {"mini": {"num_kv_heads": 3}}}, "model.mini: num_heads 4 is no multiple of num_kv_heads 3"),
        ({"model": {"dtype": "bfloat16"}, "system": {"mixed_precision": "no"}}, "model.dtype bfloat16 needs system.mixed_precision"),
    ],
)
def test_contradictions_are_refused(content: dict[str, Any], part: str) -> None:
    assert part in message(content)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"model.quantization": "4bit", "lora.enabled": False}, "model.quantization 4bit freezes the base model"),
        ({"model.dtype": "float16", "system.mixed_precision": "fp16", "lora.enabled": False}, "model.dtype float16 cannot be trained"),
        ({"model.quantization": "4bit", "system.fsdp": True}, "system.fsdp cannot split 4-bit weights"),
        ({"system.mixed_precision": "fp16", "system.fsdp": True}, "system.fsdp has no loss scaling"),
        ({"system.compile": True, "system.fsdp": True}, "system.compile does not support sharded weights"),
        ({"system.compile": True, "training.gradient_checkpointing": True}, "system.compile and training.gradient_checkpointing exclude"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_config({}, "a test", overrides)


def test_flash_attention_takes_no_mask_of_ones_own() -> None:
    with pytest.raises(UserError, match="method simcot decodes all steps .* set model.attn_implementation to sdpa"):
        build_config({"method": "simcot", "model": {"attn_implementation": "flash_attention_2"}}, "a test", {})
