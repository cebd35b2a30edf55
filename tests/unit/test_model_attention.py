"""Every attention backend agrees, and the recorder's importance is what `output_attentions` shows under eager attention."""

import pytest
import torch

from kava.bench.naive import eager_attention
from kava.model.kava import KavaModel
from kava.model.passes import read_trace
from tiny import BACKENDS, HAS_FLASH, KINDS, LAYERS, assert_close, gradients, make_batch, make_examples, present, relative, tiny_model


@pytest.mark.parametrize("method", ["kava", "codi", "full_cot"])
@pytest.mark.parametrize("kind", KINDS)
def test_backends_agree_on_losses_and_gradients(kind: str, method: str) -> None:
    results = []
    for attn in BACKENDS:
        model = tiny_model(kind, attn, method, lora=True)
        output = model(make_batch(model, make_examples()))
        results.append((present(output["terms"]), gradients(model, output["loss"].mean())))
    (terms, grads), (other_terms, other_grads) = results
    for name, value in terms.items():
        assert_close(other_terms[name], value, what=name)
    scale = max(float(gradient.abs().max()) for gradient in grads.values())
    for name, gradient in grads.items():
        assert float((other_grads[name] - gradient).abs().max()) <= 1e-5 * max(float(gradient.abs().max()), 1e-2 * scale), name


def recorded(model: KavaModel, reduction: str, drop_last_step: bool = True) -> torch.Tensor:
    batch = make_batch(model, make_examples(), drop_last_step=drop_last_step)
    assert batch.teacher is not None
    question = model.backbone.read(batch.question_ids, batch.question_mask).prefix
    _, trace = read_trace(model.backbone, question, batch.teacher, batch.example_seed, keep_hidden=False, group_reduction=reduction)
    return trace.importance


@pytest.mark.parametrize("attn", BACKENDS)
@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("kind", [*KINDS, "phi", "llama3_rope", "yarn"])
@torch.no_grad()
def test_importance_equals_output_attentions(kind: str, reduction: str, attn: str) -> None:
    """Example by example, alone and unpadded, against the matrices that transformers returns."""
    model, examples = tiny_model(kind, attn, spread=0.3), make_examples()
    importance = recorded(model, reduction)
    heads = importance.shape[2]
    assert heads == (4 if kind == "gpt2" else 2)
    with eager_attention(model):
        for b, example in enumerate(examples):
            cot = example.cot(drop_last_step=True)
            ids = torch.tensor([[*example.question, *cot, *example.answer]])
            attentions = model.backbone.causal_lm(input_ids=ids, output_attentions=True).attentions
            first, stop = len(example.question), len(example.question) + len(cot)
            expected = torch.zeros(LAYERS, heads, importance.shape[-1])
            for layer in range(LAYERS):
                for head in range(heads):
                    group = attentions[layer][0].shape[0] // heads
                    rows = attentions[layer][0, head * group : (head + 1) * group, stop:, first:stop].mean(1)
                    expected[layer, head, : len(cot)] = rows.amax(0) if reduction == "max" else rows.mean(0)
            assert_close(importance[:, b], expected, what=f"importance of example {b}")


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
