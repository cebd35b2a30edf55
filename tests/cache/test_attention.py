"""Every attention backend agrees, and the recorder's importance is what `output_attentions` shows under eager attention."""

import pytest
import torch

from helpers.checks import check_backends, check_importance, recorded
from helpers.tiny import BACKENDS, HAS_FLASH, KINDS, assert_close, make_batch, make_examples, relative, tiny_model


@pytest.mark.parametrize("method", ["kava", "codi", "simcot", "full_cot"])
@pytest.mark.parametrize("kind", KINDS)
def test_backends_agree_on_losses_and_gradients(kind: str, method: str) -> None:
    check_backends(kind, method)


@pytest.mark.parametrize("attn", BACKENDS)
@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("kind", [*KINDS, "phi", "llama3_rope", "yarn"])
@torch.no_grad()
def test_importance_equals_output_attentions(kind: str, reduction: str, attn: str) -> None:
    """Example by example, alone and unpadded, against the matrices that transformers returns."""
    check_importance(kind, attn, reduction, 4 if kind == "gpt2" else 2)


def test_max_and_mean_over_a_group_differ() -> None:
    model = tiny_model("llama", spread=0.3)
    assert relative(recorded(model, "mean"), recorded(model, "max")) > 0.05


def test_importance_carries_no_gradient() -> None:
    assert not recorded(tiny_model(lora=True), "max").requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_FLASH, reason="flash-attn is not installed")
@pytest.mark.parametrize("kind", KINDS)
def test_flash_attention_agrees_in_half_precision(kind: str) -> None:
    """bfloat16 holds 8 bits: 2 % covers it, a mask that is ignored does not."""
    losses = []
    for attn in ("sdpa", "flash_attention_2"):
        model = tiny_model(kind, attn, eviction="crop").to("cuda", torch.bfloat16)
        losses.append(model(make_batch(model, make_examples()).to("cuda"))["loss"])
    assert_close(losses[1], losses[0], 0.02)
