"""Every attention backend agrees, and the recorder's importance is what `output_attentions` shows under eager attention."""

import math

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from helpers.checks import check_backends, check_importance, recorded
from helpers.tiny import BACKENDS, HAS_FLASH, KINDS, assert_close, make_batch, make_examples, relative, tiny_model
from kava.cache.attention import PREFIX, ImportanceRecorder, recording, register_backends


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


def test_importance_is_computed_in_float32_under_autocast() -> None:
    """From half-precision queries and keys, to what float64 makes of the same numbers; bfloat16 would be off by 1e-3 and more."""
    register_backends()
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 12, 8, generator=generator).bfloat16() for heads in (4, 2, 2))
    rows, mask = torch.tensor([[9, 10, 11], [9, 10, 11]]), torch.tensor([[True, True, True], [True, True, False]])
    recorder = ImportanceRecorder(rows, mask, 2, 9, "mean")
    layer = torch.nn.Module()
    layer.layer_idx, layer.num_key_value_groups, layer.is_causal = 0, 2, True
    with torch.autocast("cpu", dtype=torch.bfloat16), recording(recorder):
        ALL_ATTENTION_FUNCTIONS[f"{PREFIX}sdpa"](layer, query, key, value, None, scaling=8**-0.5)
    scores = query.double().view(2, 2, 2, 12, 8)[:, :, :, 9:] @ key.double()[:, :, None].mT / math.sqrt(8)
    visible = torch.arange(12) <= rows[0][:, None]
    probabilities = scores.masked_fill(~visible, -torch.inf).softmax(-1)[..., 2:9]
    weight = mask / mask.sum(-1, keepdim=True)
    expected = torch.einsum("bhgac,ba->bhgc", probabilities, weight.double()).mean(2)
    assert recorder.layers[0].dtype == torch.float32
    assert_close(recorder.layers[0].double(), expected, 1e-6)


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


def test_layers_with_other_masks_are_recorded_with_their_own() -> None:
    """A mixture of full and sliding attention in one model: what layers share is computed once, and only for those that share it."""
    register_backends()
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 6, 8, generator=generator) for heads in (4, 2, 2))
    rows = torch.tensor([[4, 5], [4, 5]])
    full = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 1, 6, 6)
    narrow = full & torch.ones(6, 6, dtype=torch.bool).triu(-2)
    layer = torch.nn.Module()
    layer.num_key_value_groups, layer.is_causal = 2, True

    def importance(masks: list[torch.Tensor]) -> torch.Tensor:
        with recording(ImportanceRecorder(rows, torch.ones_like(rows, dtype=torch.bool), 0, 6)) as recorder:
            for layer.layer_idx, mask in enumerate(masks):
                ALL_ATTENTION_FUNCTIONS[f"{PREFIX}sdpa"](layer, query, key, value, mask, scaling=8**-0.5)
        return recorder.stacked()

    of_full, of_narrow = importance([full])[0], importance([narrow])[0]
    assert not torch.equal(of_full, of_narrow)
    for one, other in zip(importance([full, full, narrow, full]), (of_full, of_full, of_narrow, of_full), strict=True):
        assert torch.equal(one, other)
