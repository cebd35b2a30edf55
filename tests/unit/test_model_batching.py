"""A padded batch of different lengths gives every example what it gets alone: losses, latents, kept indices, logits."""

from dataclasses import dataclass

import pytest
import torch
from pytest import MonkeyPatch
from torch import Tensor

from kava.data.collate import Batch, Collator
from kava.eviction import Compressed, compress
from kava.methods import METHODS
from kava.model.kava import KavaModel
from kava.model.passes import read_trace
from tiny import BACKENDS, KINDS, PROMPT_IDS, assert_close, make_batch, make_examples, present, tiny_model


@dataclass
class Observed:
    """What one batch gives: terms [B], logits per pass [N, V] with their examples, latent states, kept entries."""

    terms: dict[str, Tensor]
    logits: list[Tensor]
    hidden: Tensor | None
    kept: Compressed | None


@torch.no_grad()
def observe(model: KavaModel, batch: Batch) -> Observed:
    logits: list[Tensor] = []
    plain = model.backbone.logits

    def spy(hidden: Tensor) -> Tensor:
        logits.append(plain(hidden))
        return logits[-1]

    with MonkeyPatch.context() as patch:
        patch.setattr(model.backbone, "logits", spy)
        terms = present(model(batch)["terms"])
    question = model.backbone.read(batch.question_ids, batch.question_mask).prefix
    thought = model.think(question, batch.num_latents)
    kept = None
    if model.method.kv:
        assert batch.teacher is not None
        _, trace = read_trace(
            model.backbone, question, batch.teacher, batch.example_seed, keep_hidden=False, group_reduction=model.settings.group_reduction
        )
        kept = compress(trace, model.settings.eviction, batch.num_latents, model.settings.rkv_lambda)
    return Observed(terms, logits, thought.hidden if thought else None, kept)


def check(
    model: KavaModel, num_latents: int = 4, steps: tuple[int, ...] = (1, 2, 3, 4), stage: int = 0, drop_last_step: bool = True
) -> None:
    examples = make_examples(5, steps=steps)
    batch = make_batch(model, examples, num_latents, stage, drop_last_step=drop_last_step)
    together = observe(model, batch)
    suffixes = [batch.student] + ([batch.teacher] if batch.teacher is not None else [])
    for b, example in enumerate(examples):
        alone = observe(model, make_batch(model, [example], num_latents, stage, drop_last_step=drop_last_step))
        for name, value in alone.terms.items():
            assert_close(together.terms[name][b : b + 1], value, what=f"{name} of example {b}")
        for suffix, all_logits, own in zip(suffixes, together.logits, alone.logits, strict=True):
            assert_close(all_logits[suffix.example == b], own, what=f"logits of example {b}")
        if alone.hidden is not None:
            assert together.hidden is not None
            assert_close(together.hidden[b : b + 1], alone.hidden, what=f"latents of example {b}")
        if alone.kept is not None:
            assert together.kept is not None
            assert torch.equal(together.kept.indices[:, b : b + 1], alone.kept.indices)
            assert torch.equal(together.kept.slot_mask[b : b + 1], alone.kept.slot_mask)
            assert_close(together.kept.keys[:, b : b + 1], alone.kept.keys, what=f"kept keys of example {b}")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_example_as_alone(kind: str, method: str) -> None:
    check(tiny_model(kind, method=method), stage={"icot": 1, "coconut": 2}.get(method, 0))


@pytest.mark.parametrize("attn", BACKENDS)
@pytest.mark.parametrize("kind", [*KINDS, "phi", "yarn"])
def test_on_every_backend(kind: str, attn: str) -> None:
    check(tiny_model(kind, attn, lora=True))


@pytest.mark.parametrize(("num_latents", "num_iterations"), [(4, 0), (4, 4), (3, 5), (1, 1), (1, 0), (24, 2)])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_any_latents_and_iterations(kind: str, num_latents: int, num_iterations: int) -> None:
    """M = 24 is longer than every trace here (C < M), M = 1 and 3 shorter than most."""
    check(tiny_model(kind, num_iterations=num_iterations), num_latents)


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_problems_only(kind: str) -> None:
    """Nothing is left of any trace: C = 0 for the whole batch."""
    check(tiny_model(kind), steps=(1,))
    check(tiny_model(kind), steps=(1, 1, 1, 4))


def test_an_empty_trace_has_no_kv_target() -> None:
    model = tiny_model()
    terms = model(make_batch(model, make_examples(4, steps=(1, 3, 1, 2))))["terms"]
    assert terms.kv[0] == 0 == terms.kv[2]
    assert terms.kv[1] > 0 < terms.kv[3]
    assert (terms.codi > 0).all()
    assert (terms.teacher_ce > 0).all()


@pytest.mark.parametrize("eviction", ["attention", "cosine", "crop", "uniform", "random"])
def test_every_eviction(eviction: str) -> None:
    check(tiny_model(eviction=eviction), num_latents=3, drop_last_step=False)


@pytest.mark.parametrize("kv_rope", ["pre", "post"])
def test_keys_before_and_after_rotation(kv_rope: str) -> None:
    check(tiny_model(kv_rope=kv_rope, layerwise_std=False))


@pytest.mark.parametrize("attn", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_fills_the_gaps_is_never_seen(kind: str, attn: str) -> None:
    """The same batch with another padding id: not a bit of any loss changes."""
    model, examples = tiny_model(kind, attn), make_examples()
    losses = [model(Collator(model.method, pad, len(PROMPT_IDS), num_latents=4).collate(examples))["loss"] for pad in (0, 37)]
    assert torch.equal(losses[0], losses[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_a_batch_does_not_matter(kind: str) -> None:
    model, examples = tiny_model(kind), make_examples()
    forwards = model(make_batch(model, examples))["loss"]
    backwards = model(make_batch(model, examples[::-1]))["loss"]
    assert_close(backwards.flip(0), forwards)
