"""Sharing the question changes nothing: losses and gradients equal those of plain, separate, full passes."""

import pytest
import torch

from helpers.checks import compare
from helpers.tiny import BACKENDS, KINDS, assert_close, gradients, make_batch, make_examples, tiny_model
from kava.losses.total import combine
from kava.methods import METHODS
from kava.runtime.device import as_on_gpu
from kava.tools.bench.naive import naive_losses, pccot_losses

STAGE = {"icot": 1, "coconut": 2}


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_shared_question_equals_separate_full_passes(kind: str, method: str, lora: bool) -> None:
    model = tiny_model(kind, method=method, lora=lora)
    compare(model, make_batch(model, make_examples(), stage=STAGE.get(method, 0)))


@pytest.mark.parametrize("settings", [{}, {"importance": "trace"}, {"eviction": "rkv_original"}, {"kv_iterations": "all"}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpus_way_computes_the_same(kind: str, settings: dict[str, str]) -> None:
    """The teacher's branch runs in the question's pass there."""
    model = tiny_model(kind, lora=True, **settings)
    batch = make_batch(model, make_examples(steps=(2, 3, 4)))
    expected = model(batch)["terms"]
    grads = gradients(model, model(batch)["loss"].mean())
    with as_on_gpu():
        terms = model(batch)["terms"]
        found = gradients(model, model(batch)["loss"].mean())
    for name, value in expected.items():
        assert_close(terms[name], value, what=name)
    scale = max(float(gradient.abs().max()) for gradient in grads.values())
    for name, gradient in grads.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * max(float(gradient.abs().max()), 1e-2 * scale), name


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.uses_latents])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpus_way_equals_separate_full_passes(kind: str, method: str) -> None:
    model = tiny_model(kind, method=method, lora=True)
    with as_on_gpu():
        compare(model, make_batch(model, make_examples(), stage=STAGE.get(method, 0)))


@pytest.mark.parametrize("method", ["kava", "codi", "simcot", "coconut"])
def test_in_double_precision_only_rounding_is_left(method: str) -> None:
    """A spread of 0.3 makes the iterations chaotic, so that any real difference would grow."""
    model = tiny_model("gpt2", method=method, lora=True, spread=0.3).double()
    compare(model, make_batch(model, make_examples(), stage=STAGE.get(method, 0)), tolerance=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_eager_attention_too(kind: str) -> None:
    model = tiny_model(kind, "eager", lora=True)
    compare(model, make_batch(model, make_examples()))


@pytest.mark.parametrize("method", ["kava", "pccot", "codi", "no_cot"])
def test_tied_embeddings(method: str) -> None:
    model = tiny_model("llama", method=method, lora=True, tied=True)
    compare(model, make_batch(model, make_examples()))


@pytest.mark.parametrize("method", METHODS)
def test_pccot_style_step_computes_the_same(method: str) -> None:
    model = tiny_model("llama", method=method, lora=True)
    compare(model, make_batch(model, make_examples(), stage=STAGE.get(method, 0)), pccot_losses)


@pytest.mark.parametrize("num_iterations", [0, 1, 4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_iterations(kind: str, num_iterations: int) -> None:
    model = tiny_model(kind, num_iterations=num_iterations)
    compare(model, make_batch(model, make_examples()))


@pytest.mark.parametrize("num_latents", [1, 2, 24])
def test_any_number_of_latents(num_latents: int) -> None:
    model = tiny_model("llama", lora=True)
    compare(model, make_batch(model, make_examples(), num_latents))


@pytest.mark.parametrize(
    "settings",
    [
        {"kv_rope": "pre"},
        {"kv_parts": "keys", "kv_loss_type": "mse"},
        {"kv_parts": "values", "kv_loss_type": "l1", "codi_loss_type": "l1"},
        {"layerwise_std": False, "group_reduction": "mean", "rkv_lambda": 0.5},
        {"importance": "trace", "rkv_lambda": 1.0},
        {"share": "layer"},
        {"share": "all", "importance": "trace"},
        {"kv_iterations": "all"},
        {"eviction": "attention"},
        {"eviction": "cosine"},
        {"eviction": "crop"},
        {"eviction": "uniform"},
        {"eviction": "random", "eviction_seed": 7},
    ],
    ids=str,
)
def test_every_choice_of_loss(settings: dict[str, object]) -> None:
    model = tiny_model("llama", lora=True, **settings)
    compare(model, make_batch(model, make_examples()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drop_last_step", [True, False])
def test_one_step_problems_only(kind: str, drop_last_step: bool) -> None:
    model = tiny_model(kind, lora=True)
    batch = make_batch(model, make_examples(steps=(1,)), drop_last_step=drop_last_step)
    assert batch.teacher is not None
    assert (batch.teacher.cot_width == 0) is drop_last_step
    compare(model, batch)


def test_without_projection() -> None:
    model = tiny_model("llama", lora=True, projection=False)
    assert not list(model.projection.parameters())
    compare(model, make_batch(model, make_examples()))


def test_the_oracle_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama", "sdpa")
    batch = make_batch(model, make_examples())
    before = model(batch)["loss"]
    naive_losses(model, batch)
    assert model.backbone.causal_lm.config._attn_implementation == "kava_sdpa"
    assert torch.equal(model(batch)["loss"], before)


@pytest.mark.parametrize("attn", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_what_can_run_in_one_pass_does(method: str, attn: str) -> None:
    """The first latents, on a GPU the teacher too, with the question, the last latents with the answer, all at once without latents."""
    model = tiny_model("llama", attn, method=method)
    batch = make_batch(model, make_examples())
    latent_passes = {
        "kava": 3,
        "pccot": 3,
        "codi": batch.num_latents,
        "simcot": batch.num_latents + 1,
        "coconut": max(batch.num_latents, 1),
    }.get(method, 0)
    model(batch)
    assert model.backbone.forward_passes == 1 + latent_passes + (batch.teacher is not None)
    model.backbone.forward_passes = 0
    with as_on_gpu():
        model(batch)
    own_pass = batch.teacher is not None and attn == "eager"  # only SDPA is given the mask of both branches
    assert model.backbone.forward_passes == 1 + latent_passes + own_pass


@pytest.mark.parametrize("kind", KINDS)
def test_the_total_is_the_weighted_sum_of_the_terms(kind: str) -> None:
    model = tiny_model(kind)
    output = model(make_batch(model, make_examples()))
    terms = output["terms"]
    by_hand = terms["student_ce"] + terms["teacher_ce"] + 10.0 * terms["codi"] + 1.0 * terms["kv"]
    assert torch.allclose(output["loss"], by_hand, rtol=1e-6)
    assert torch.equal(output["loss"], combine(terms, model.settings.weights))


def test_with_dropout_a_step_is_a_function_of_the_seed() -> None:
    model = tiny_model("gpt2").train()
    for block in model.backbone.decoder.h:
        block.mlp.dropout.p = 0.5
    batch = make_batch(model, make_examples())
    losses = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        losses.append(model(batch)["loss"])
    assert torch.equal(losses[0], losses[1])
    assert not torch.allclose(losses[0], losses[2], rtol=1e-3)
