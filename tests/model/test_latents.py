"""Jacobi iterations: T = M equals sequential latents, T > M changes nothing, and what is final need not run again."""

import pytest
import torch
from torch import Tensor

from helpers.tiny import KINDS, assert_close, gradients, make_batch, make_examples, relative, tiny_model
from kava.cache.prefix import Prefix
from kava.data.collate import Batch
from kava.model.kava import KavaModel
from kava.model.latents import Thought, think_parallel, think_sequential
from kava.tools.bench.naive import latent_inputs, naive_losses, read_student

M = 5


def question_of(model: KavaModel) -> tuple[Prefix, Batch]:
    batch = make_batch(model, make_examples(), M)
    return model.backbone.read(batch.question_ids, batch.question_mask).prefix, batch


def think(model: KavaModel, question: Prefix, num_iterations: int) -> Thought:
    return think_parallel(model.backbone, question, model.projection, M, num_iterations, keep_trajectory=True)


def assert_same_thought(actual: Thought, expected: Thought) -> None:
    assert_close(actual.hidden, expected.hidden, what="hidden states")
    assert torch.equal(actual.prefix.mask, expected.prefix.mask)
    assert torch.equal(actual.prefix.next_position, expected.prefix.next_position)
    for layer, other in zip(actual.prefix.layers, expected.prefix.layers, strict=True):
        for tensor, reference in zip(layer, other, strict=True):
            assert_close(tensor, reference, what="cache")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_as_many_iterations_as_latents_equal_sequential_generation(kind: str) -> None:
    model = tiny_model(kind)
    question, _ = question_of(model)
    expected = think_sequential(model.backbone, question, model.projection, M)
    assert_same_thought(think(model, question, M), expected)
    assert relative(think(model, question, M - 2).hidden, expected.hidden) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_their_gradients_are_equal_too(kind: str) -> None:
    model = tiny_model(kind, lora=True)
    results = []
    for parallel in (True, False):
        question, _ = question_of(model)
        thought = think(model, question, M) if parallel else think_sequential(model.backbone, question, model.projection, M)
        weights = torch.randn(thought.hidden.shape, generator=torch.Generator().manual_seed(5))
        results.append(gradients(model, (thought.hidden * weights).sum()))
    scale = max(float(gradient.abs().max()) for gradient in results[1].values())
    for name, expected in results[1].items():
        assert float((results[0][name] - expected).abs().max()) <= 1e-5 * max(float(expected.abs().max()), 1e-2 * scale), name


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_more_iterations_than_latents_change_nothing(kind: str) -> None:
    model = tiny_model(kind)
    question, _ = question_of(model)
    expected = think(model, question, M).hidden
    before = model.backbone.forward_passes
    for num_iterations in (M + 1, M + 7):
        assert torch.equal(think(model, question, num_iterations).hidden, expected)
    assert model.backbone.forward_passes - before == 2 * (1 + M)


@pytest.mark.parametrize("num_iterations", range(M + 3))
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_final_latents_need_not_run_again(kind: str, num_iterations: int) -> None:
    """Against all M latents recomputed with the whole question in every iteration."""
    model = tiny_model(kind, num_iterations=num_iterations)
    question, batch = question_of(model)
    thought = think(model, question, num_iterations)
    reading = read_student(model, batch, latent_inputs(model, batch))
    start = question.length
    assert_close(thought.hidden, reading.hidden[:, start : start + 1 + M], what="hidden states")
    for (keys, values), (expected_keys, expected_values) in zip(thought.prefix.layers, reading.layers, strict=True):
        real = thought.prefix.mask[:, None, :, None]
        assert_close(keys * real, expected_keys[:, :, : start + 1 + M] * real, what="keys")
        assert_close(values * real, expected_values[:, :, : start + 1 + M] * real, what="values")


@pytest.mark.parametrize("num_iterations", range(M + 3))
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_latents_that_lead_nowhere_need_not_run(kind: str, num_iterations: int) -> None:
    """Without the trajectory, pass t leaves out the last T - t latents; what comes out is the same, in M - T + 1 latents per pass."""
    model = tiny_model(kind)
    question, _ = question_of(model)
    whole = think(model, question, num_iterations)
    widths: list[int] = []
    extend = model.backbone.extend
    model.backbone.extend = lambda prefix, embeds, *rest: widths.append(embeds.shape[1]) or extend(prefix, embeds, *rest)  # type: ignore[method-assign]
    lean = think_parallel(model.backbone, question, model.projection, M, num_iterations)
    assert_close(lean.hidden, whole.hidden, what="hidden states")
    for pair, expected in zip(lean.prefix.layers, whole.prefix.layers, strict=True):
        assert_close(torch.cat(pair, -1), torch.cat(expected, -1), what="keys and values")
    iterations = min(num_iterations, M)
    assert widths == [1 + M - iterations] + [M - iterations + 1] * iterations


@torch.no_grad()
def test_after_t_iterations_the_first_t_latents_are_final() -> None:
    model = tiny_model()
    question, _ = question_of(model)
    trajectory = think(model, question, M).trajectory
    assert len(trajectory) == M + 1
    for done, hidden in enumerate(trajectory):
        assert torch.equal(hidden[:, : done + 1], trajectory[-1][:, : done + 1])
        if done < M:
            assert relative(hidden[:, done + 1], trajectory[-1][:, done + 1]) > 1e-3


@torch.no_grad()
def test_without_iterations_the_latents_are_those_of_the_prefill() -> None:
    model = tiny_model(num_iterations=0)
    question, _ = question_of(model)
    bot, _, latent = model.backbone.special_embeddings()
    prefill = model.backbone.extend(question, torch.stack([bot, *[latent] * M]).expand(len(question.mask), -1, -1))
    assert torch.equal(think(model, question, 0).hidden, prefill.hidden)


@torch.no_grad()
def test_a_question_is_left_as_it_was() -> None:
    """Several passes share it: nothing may be written into it."""
    model = tiny_model()
    question, batch = question_of(model)
    copies = [tensor.clone() for pair in question.layers for tensor in pair]
    think(model, question, M)
    think_sequential(model.backbone, question, model.projection, M)
    naive_losses(model, batch)
    held: list[Tensor] = [tensor for pair in question.layers for tensor in pair]
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(held, copies, strict=True))
