"""Gradients reach projection, adapters and new-token rows through all T iterations, and never the teacher's side of a target."""

from typing import Any

import pytest
import torch
from pytest import MonkeyPatch
from torch import Tensor

from helpers.tiny import KINDS, SPECIAL_IDS, assert_close, gradients, make_batch, make_examples, tiny_model
from kava.eviction import compress
from kava.losses.hidden import codi_loss
from kava.model.kava import KavaModel
from kava.model.latents import think_parallel
from kava.model.passes import read_suffix, read_trace

T = 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["kava", "pccot", "codi", "simcot"])
def test_every_trainable_parameter_gets_a_gradient(kind: str, method: str) -> None:
    model = tiny_model(kind, method=method, lora=True)
    grads = gradients(model, model(make_batch(model, make_examples()))["loss"].mean())
    assert any("lora_A" in name for name in grads)
    assert any("projection" in name for name in grads)
    for name, gradient in grads.items():
        assert gradient.abs().max() > 0, name
    (rows,) = (gradient for name, gradient in grads.items() if "trainable_tokens_delta" in name)
    used = rows.abs().amax(1) > 0
    # Sequential latents never meet the <latent> token.
    assert used.tolist() == [True, True, method in ("kava", "pccot")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("term", ["student_ce", "codi", "kv"])
def test_each_of_the_student_s_losses_reaches_every_iteration(kind: str, term: str, monkeypatch: MonkeyPatch) -> None:
    model = tiny_model(kind, lora=True, num_iterations=T)
    inputs: list[Tensor] = []
    plain = model.projection.forward

    def spy(hidden: Tensor) -> Tensor:
        projected = plain(hidden)
        projected.retain_grad()
        inputs.append(projected)
        return projected

    monkeypatch.setattr(model.projection, "forward", spy)
    model(make_batch(model, make_examples()))["terms"][term].sum().backward()
    reached = [projected.grad.abs().amax((0, 2)) > 0 for projected in inputs if projected.grad is not None]
    # Iteration t runs latents t .. M - (T - t), those that are not final and can reach the last one: here two of four.
    assert [flags.tolist() for flags in reached] == [[True, True]] * T


@pytest.mark.parametrize("kind", KINDS)
def test_cutting_an_iteration_off_changes_the_gradient(kind: str, monkeypatch: MonkeyPatch) -> None:
    """The prefill's latents matter through the first projection alone, so cutting there silences <latent>; later cuts halve a chain."""
    batch = make_batch(tiny_model(kind), make_examples())
    rows, projections = [], []
    for cut in (None, 0, 1, 2):
        model = tiny_model(kind, lora=True, num_iterations=T)
        calls = iter(range(T))
        plain = model.projection.forward

        def project(hidden: Tensor, plain: Any = plain, calls: Any = calls, cut: int | None = cut) -> Tensor:
            return plain(hidden.detach() if next(calls) == cut else hidden)

        monkeypatch.setattr(model.projection, "forward", project)
        grads = gradients(model, model(batch)["loss"].mean())
        rows.append(next(gradient for name, gradient in grads.items() if "trainable_tokens_delta" in name))
        projections.append(grads["projection.layers.0.weight"])
    assert rows[0][2].abs().max() > 0
    assert rows[1][2].abs().max() == 0
    # No projection comes before the first.
    assert torch.equal(projections[0], projections[1])
    for other in (2, 3):
        assert (projections[0] - projections[other]).abs().max() > 1e-3 * projections[0].abs().max()


def test_the_whole_fine_tuning_variant_moves_the_new_token_rows_and_all_others_that_are_read() -> None:
    model = tiny_model("llama", lora=False)
    grads = gradients(model, model(make_batch(model, make_examples()))["loss"].mean())
    assert (grads["backbone.model.model.embed_tokens.weight"][SPECIAL_IDS].abs().amax(1) > 0).all()
    assert all(gradient.abs().max() > 0 for gradient in grads.values())


def with_teacher_leaf(model: KavaModel, monkeypatch: MonkeyPatch, ids: Tensor) -> Tensor:
    """Make the embeddings of the teacher's suffix a leaf, so that what reaches the teacher's side is seen on it."""
    plain = model.backbone.embed
    leaf = plain(ids).detach().requires_grad_()
    monkeypatch.setattr(model.backbone, "embed", lambda asked: leaf if asked is ids else plain(asked))
    return leaf


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("term", ["kv", "codi", "student_ce"])
def test_nothing_flows_into_the_teacher_s_side(kind: str, term: str, monkeypatch: MonkeyPatch) -> None:
    model = tiny_model(kind, lora=True)
    batch = make_batch(model, make_examples())
    assert batch.teacher is not None
    leaf = with_teacher_leaf(model, monkeypatch, batch.teacher.ids)
    terms = model(batch)["terms"]
    (into_teacher,) = torch.autograd.grad(terms[term].sum(), leaf, retain_graph=True, allow_unused=True)
    assert into_teacher is None or not into_teacher.any()
    (from_teacher_ce,) = torch.autograd.grad(terms["teacher_ce"].sum(), leaf)
    assert from_teacher_ce.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("term", ["kv", "codi"])
def test_gradients_equal_those_of_constant_targets(kind: str, term: str) -> None:
    """Targets computed beforehand without a graph: the shared weights get the same gradient, to the last digits."""
    model = tiny_model(kind, lora=True)
    batch = make_batch(model, make_examples())
    assert batch.teacher is not None
    settings = model.settings
    with torch.no_grad():
        question = model.backbone.read(batch.question_ids, batch.question_mask).prefix
        teacher, trace = read_trace(
            model.backbone, question, batch.teacher, batch.example_seed, keep_hidden=True, group_reduction=settings.group_reduction
        )
        target = compress(trace, settings.eviction, batch.num_latents, settings.rkv_lambda)
    actual = gradients(model, model(batch)["terms"][term].sum())
    question = model.backbone.read(batch.question_ids, batch.question_mask).prefix
    thought = think_parallel(model.backbone, question, model.projection, batch.num_latents, settings.num_iterations)
    if term == "kv":
        loss = model.match_cache(target, question, thought.prefix)
    else:
        eot = model.backbone.special_embeddings()[1:2].expand(len(batch), -1, -1)
        student = read_suffix(model.backbone, thought.prefix, batch.student, lead=eot, keep_hidden=True)
        assert teacher.distillation is not None
        assert student.distillation is not None
        loss = codi_loss(teacher.distillation, student.distillation, settings.codi_loss_type, settings.layerwise_std)
    expected = gradients(model, loss.sum())
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert float((actual[name] - gradient).abs().max()) <= 1e-6 * scale, name


@pytest.mark.parametrize("kind", KINDS)
def test_kv_distillation_stops_at_the_last_latent(kind: str) -> None:
    """L_KV looks at the latents' entries only: <eot> comes after them and gets nothing, <bot> before them gets its share."""
    model = tiny_model(kind, lora=True)
    grads = gradients(model, model(make_batch(model, make_examples()))["terms"]["kv"].sum())
    (rows,) = (gradient for name, gradient in grads.items() if "trainable_tokens_delta" in name)
    assert (rows.abs().amax(1) > 0).tolist() == [True, False, True]


def test_two_small_batches_add_up_to_a_large_one() -> None:
    """Accumulation over 2 x 4 examples gives the gradient of 8, however each half is padded."""
    model, examples = tiny_model(lora=True), make_examples(8)
    whole = gradients(model, model(make_batch(model, examples))["loss"].mean())
    model.zero_grad()
    for half in (examples[:4], examples[4:]):
        (model(make_batch(model, half))["loss"].sum() / 8).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert_close(parameter.grad, whole[name], what=name)
