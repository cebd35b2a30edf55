"""A padded batch of different lengths gives every example what it gets alone: losses, latents, kept indices, logits."""

import pytest
import torch

from helpers.checks import check_batching
from helpers.tiny import BACKENDS, KINDS, PROMPT_IDS, assert_close, gradients, make_batch, make_examples, tiny_model
from kava.data.collate import Collator
from kava.methods import EVICTIONS, METHODS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_example_as_alone(kind: str, method: str) -> None:
    check_batching(tiny_model(kind, method=method), stage={"icot": 1, "coconut": 2}.get(method, 0))


@pytest.mark.parametrize("attn", BACKENDS)
@pytest.mark.parametrize("kind", [*KINDS, "phi", "yarn"])
def test_on_every_backend(kind: str, attn: str) -> None:
    check_batching(tiny_model(kind, attn, lora=True))


@pytest.mark.parametrize(("num_latents", "num_iterations"), [(4, 0), (4, 4), (3, 5), (1, 1), (1, 0), (24, 2)])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_any_latents_and_iterations(kind: str, num_latents: int, num_iterations: int) -> None:
    """M = 24 is longer than every trace here (C < M), M = 1 and 3 shorter than most."""
    check_batching(tiny_model(kind, num_iterations=num_iterations), num_latents)


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_problems_only(kind: str) -> None:
    """Nothing is left of any trace: C = 0 for the whole batch."""
    check_batching(tiny_model(kind), steps=(1,))
    check_batching(tiny_model(kind), steps=(1, 1, 1, 4))


def test_an_empty_trace_has_no_kv_target() -> None:
    model = tiny_model()
    terms = model(make_batch(model, make_examples(4, steps=(1, 3, 1, 2))))["terms"]
    assert terms["kv"][0] == 0 == terms["kv"][2]
    assert terms["kv"][1] > 0 < terms["kv"][3]
    assert (terms["codi"] > 0).all()
    assert (terms["teacher_ce"] > 0).all()


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_every_eviction(eviction: str) -> None:
    check_batching(tiny_model(eviction=eviction), num_latents=3, drop_last_step=False)


@pytest.mark.parametrize("kv_rope", ["pre", "post"])
def test_keys_before_and_after_rotation(kv_rope: str) -> None:
    check_batching(tiny_model(kv_rope=kv_rope, layerwise_std=False))


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


@pytest.mark.parametrize("attn", BACKENDS)
@pytest.mark.parametrize("kind", [*KINDS, "phi", "yarn"])
def test_examples_at_different_stages_of_coconut_as_alone(kind: str, attn: str) -> None:
    """Losses and gradients: alone, an example has no latents but its own; 0 to 4 of them, with and without steps behind."""
    model = tiny_model(kind, attn, "coconut", lora=True)
    examples, stages = make_examples(6), (0, 1, 2, 3, 1, 0)
    batch = Collator(model.method, 0, len(PROMPT_IDS), num_latents=4, trailing_stage=True).collate(examples, stages)
    assert batch.latent_mask is not None
    assert batch.latent_mask.sum(1).tolist() == [0, 2, 4, 4, 2, 0]
    alone = [make_batch(model, [one], stage=stage, trailing_stage=True) for one, stage in zip(examples, stages, strict=True)]
    assert [one.latent_mask for one in alone] == [None] * 6
    assert [one.num_latents for one in alone] == [0, 2, 4, 4, 2, 0]
    expected = torch.cat([model(one)["loss"] for one in alone])
    loss = model(batch)["loss"]
    assert_close(loss, expected)
    own, those = gradients(model, loss.sum()), gradients(model, expected.sum())
    scale = max(float(gradient.abs().max()) for gradient in those.values())
    for name, gradient in those.items():
        assert float((own[name] - gradient).abs().max()) <= 1e-5 * max(float(gradient.abs().max()), 1e-2 * scale), name


def test_examples_at_one_stage_need_no_mask() -> None:
    """Whether the last latent runs with the answer or before it, with all latents real or some masked, changes rounding alone."""
    model, examples = tiny_model(method="coconut"), make_examples()
    collator = Collator(model.method, 0, len(PROMPT_IDS), num_latents=4)
    for collator.stage in range(3):
        assert_close(model(collator.collate(examples, [collator.stage] * 5))["loss"], model(collator.collate(examples))["loss"])
