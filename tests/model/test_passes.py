"""Branches of one pass do not see each other: teacher and latents, and the steps of SIM-CoT's decoder, which is gone afterwards."""

from dataclasses import replace

import pytest
import torch

from helpers.checks import compare
from helpers.tiny import (
    ARCHITECTURES,
    BACKENDS,
    EAGER_ONLY,
    KINDS,
    PROMPT_IDS,
    assert_close,
    make_batch,
    make_examples,
    mini_builder,
    mini_examples,
    mini_model,
    tiny_model,
)
from kava.data.collate import Collator
from kava.data.sequences import EncodedExample
from kava.generate import Reasoner
from kava.model.latents import parallel_tail
from kava.model.passes import read_branches, read_steps, read_trace


@pytest.mark.parametrize("importance", ["context", "trace", "window"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_branches_in_one_pass_are_two_passes(kind: str, importance: str) -> None:
    """The teacher's pass and the one that starts the latents, to rounding; without hidden layers where none are asked for."""
    model = tiny_model(kind, spread=0.3)
    backbone, batch = model.backbone, make_batch(model, make_examples())
    assert batch.teacher is not None
    ids, mask, tail = batch.question_ids, batch.question_mask, parallel_tail(backbone, 4, 2, len(batch))
    recorded = {"group_reduction": "max", "importance": importance}
    run, reading, trace = read_branches(
        backbone, ids, mask, tail, batch.teacher, batch.example_seed, keep_hidden=importance != "trace", **recorded
    )
    alone = backbone.read(ids, mask, tail)
    question = alone.prefix.shortened(tail.shape[1], alone.hidden[:, ids.shape[1] - 1 : ids.shape[1]])
    other, other_trace = read_trace(backbone, question, batch.teacher, batch.example_seed, keep_hidden=True, **recorded)
    real = alone.prefix.mask
    assert torch.equal(run.prefix.mask, real)
    assert torch.equal(run.prefix.next_position, alone.prefix.next_position)
    assert_close(run.hidden[real], alone.hidden[real])
    for own, those in zip(run.prefix.layers, alone.prefix.layers, strict=True):
        for part, that in zip(own, those, strict=True):
            assert_close(part.transpose(1, 2)[real], that.transpose(1, 2)[real])
    assert_close(reading.cross_entropy, other.cross_entropy)
    assert (reading.distillation is None) == (importance == "trace")
    if reading.distillation is not None and other.distillation is not None:
        assert_close(reading.distillation, other.distillation)
    assert_close(trace.importance, other_trace.importance)
    there = trace.mask[None, :, None, :, None]
    assert_close(trace.keys * there, other_trace.keys * there)
    assert_close(trace.values * there, other_trace.values * there)


@pytest.mark.parametrize("attn", BACKENDS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_step_sees_its_own_latents_and_tokens_alone(kind: str, attn: str) -> None:
    """Exactly: the gradient at every other latent and token is 0, and a later token of the same step is not seen either."""
    model = tiny_model(kind, attn, "simcot")
    collator = Collator(model.method, 0, len(PROMPT_IDS), num_latents=4, tokens_per_step=2)
    example = EncodedExample([11], [[21, 22], [23], [24, 25], [26]], [*PROMPT_IDS, 30, 1], seed=9)
    batch = collator.collate([example])
    assert batch.teacher is not None
    assert batch.steps is not None
    latents = torch.randn(1, 4, model.backbone.embed(batch.question_ids).shape[-1], requires_grad=True)
    embedded: list[torch.Tensor] = []
    plain = model.backbone.embed

    def embed(ids: torch.Tensor) -> torch.Tensor:
        embedded.append(plain(ids).detach().requires_grad_())
        return embedded[-1]

    model.backbone.embed = embed  # type: ignore[method-assign]
    losses = read_steps(model.backbone, latents, batch.teacher, batch.steps)
    of_latents, of_tokens = batch.steps[0].split([4, 5])
    for token in range(5):
        to_latents, to_tokens = torch.autograd.grad(losses[0, token], [latents, embedded[0]], retain_graph=True)
        assert torch.equal(to_latents[0].abs().amax(-1) > 0, of_latents == of_tokens[token])
        seen = (of_tokens == of_tokens[token]) & (torch.arange(5) < token)
        assert torch.equal(to_tokens[0].abs().amax(-1) > 0, seen)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_holds_to_the_mask(kind: str) -> None:
    """Against one pass per step; those that build more on a mask than attention would differ here."""
    model = tiny_model(kind, "eager" if kind in EAGER_ONLY else "sdpa", "simcot", lora=True)
    compare(model, make_batch(model, make_examples(3, steps=(4, 2, 3)), 4))


def test_one_latent_per_step() -> None:
    model = tiny_model(method="simcot", lora=True)
    compare(model, Collator(model.method, 0, len(PROMPT_IDS), num_latents=3, tokens_per_step=1).collate(make_examples()))


def test_nothing_of_it_is_left_at_inference() -> None:
    """The same parts, the same answers and the same cost as CODI's."""
    questions, builder = [example.question for example in mini_examples(3)], mini_builder()
    codi, simcot = mini_model(method="codi"), mini_model(method="simcot")
    simcot.load_state_dict(codi.state_dict())
    answers = []
    for model in (codi, simcot):
        model.backbone.forward_passes = 0
        answers.append((Reasoner(model, builder, 4, 3).generate(questions, max_new_tokens=5), model.backbone.forward_passes))
    assert answers[0] == answers[1]


def test_the_loss_falls_and_reaches_the_latents() -> None:
    """By step loss alone: its gradient has a way through projection and latents, and steps become readable."""
    builder, model = mini_builder(), mini_model(method="simcot")
    weights = dict.fromkeys(model.settings.weights, 0.0) | {"step_ce": 1.0}
    model.settings = replace(model.settings, weights=weights)
    collator = Collator(model.method, 0, len(builder.prompt_ids), num_latents=4)
    batch = collator.collate([builder.encode(example) for example in mini_examples(8)])
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    seen = []
    for _ in range(25):
        output = model(batch)
        seen.append(float(output["terms"]["step_ce"].detach().mean()))
        optimizer.zero_grad()
        output["loss"].mean().backward()
        if len(seen) == 1:
            assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.projection.parameters())
        optimizer.step()
    assert seen[-1] < 0.6 * seen[0], seen
