"""Buckets of padded lengths: few shapes, little padding, and not a number that depends on how far a batch is padded."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.loading import load_examples
from helpers.tiny import PROMPT_IDS, assert_close, gradients, lora_config, make_examples, tiny_model
from kava.data.buckets import MAX_BUCKETS, Buckets, fit_buckets
from kava.data.collate import Collator
from kava.data.encoded_rows import Lengths, lengths_of
from kava.methods import METHODS
from kava.train.prepare import bucketed, padded_lengths
from kava.train.sampler import LengthSortedSampler, padding_share, widths_of

# Rows of GSM8k-AUG's training set.
AUG_ROWS, AUG_BATCH = 385_620, 128
LATENTS = 4


def like_gsm8k(count: int) -> Lengths:
    """Lengths with about GSM8k-AUG's means and spreads (62, 25 and 8 tokens of question, trace without its last step, answer)."""
    rng = np.random.default_rng(0)
    steps = rng.integers(0, 5, count)
    question = rng.lognormal(3.85 + 0.12 * steps, 0.32, count).astype(int).clip(12, 250)
    trace = np.where(steps > 0, (steps * rng.normal(12, 2, count)).astype(int).clip(5, 140), 0)
    return Lengths(question, trace, 6 + rng.geometric(0.5, count).clip(1, 8))


def check_epoch(lengths: Lengths) -> None:
    """At most 200 shapes and 9 % padding in an epoch of the full size."""
    sampler = LengthSortedSampler(lengths, AUG_BATCH, seed=3)
    order = sampler.order(0)
    widths = widths_of(lengths)[order]
    batches = np.split(widths, range(AUG_BATCH, AUG_ROWS, AUG_BATCH))
    shapes = {(len(batch), *sampler.buckets.around(*batch.max(axis=0).tolist())) for batch in batches}
    assert len(shapes) <= 200
    assert padding_share(lengths, order, AUG_BATCH, sampler.buckets) < 0.09
    assert np.array_equal(np.sort(order), np.arange(AUG_ROWS))


def test_an_epoch_of_gsm8k_aug_has_few_shapes() -> None:
    check_epoch(like_gsm8k(AUG_ROWS))


@pytest.mark.data
def test_an_epoch_with_the_lengths_of_real_rows_has_few_shapes(data_dir: Path) -> None:
    """Rows of the test and validation sets drawn again, a few tokens longer or shorter; digits and words count as tokens."""
    files = [(data_dir / "gsm8k_aug_test.txt", "test"), (data_dir / "gsm8k_aug_valid.txt", "validation")]
    examples = [example for path, split in files for example in load_examples(str(path), split, cot_type="equation").examples]

    def tokens(text: str) -> int:
        return len(re.findall(r"\d|[A-Za-z']+|[^\w\s]|\n", text))

    parts = [(tokens(e.question), sum(tokens(step) + 1 for step in e.steps[:-1]), 6 + tokens(e.answer)) for e in examples]
    rng = np.random.default_rng(0)
    question, trace, answer = np.array(parts)[rng.integers(0, len(parts), AUG_ROWS)].T
    question = (question + rng.integers(-6, 7, AUG_ROWS)).clip(4)
    trace = np.where(trace > 0, (trace + rng.integers(-4, 5, AUG_ROWS)).clip(2), 0)
    check_epoch(Lengths(question, trace, answer))


def test_every_example_has_the_smallest_bucket_that_holds_it_and_a_next_one() -> None:
    lengths = like_gsm8k(3000)
    widths = widths_of(lengths)
    buckets = fit_buckets(widths, least=40, most=30)
    edges, found = buckets.edges, buckets.smallest(widths)
    assert len(edges) <= 31
    for width, index in zip(widths[:200].tolist(), found[:200].tolist(), strict=True):
        holding = [number for number, edge in enumerate(edges.tolist()) if all(a <= b for a, b in zip(width, edge, strict=True))]
        assert index == holding[0]
    assert edges[-1].tolist() == widths.max(axis=0).tolist()
    assert all((edges[after] >= edges[index]).all() and after > index for index, after in enumerate(buckets.next))


def test_more_buckets_leave_less_padding_and_lengths_that_are_alike_need_none() -> None:
    lengths = like_gsm8k(20_000)
    widths = widths_of(lengths)
    padded = []
    for most in (1, 10, 100):
        buckets = fit_buckets(widths, least=50, most=most)
        padded.append(int(buckets.edges[buckets.smallest(widths)].sum()))
    assert padded[0] > 1.5 * padded[1] > 1.5 * padded[2] > widths.sum()
    alike = np.repeat(np.array([[9, 4, 5], [12, 4, 5], [12, 8, 5]]), 100, axis=0)
    assert fit_buckets(alike, least=50).edges.tolist() == [[9, 4, 5], [12, 4, 5], [12, 8, 5]]
    assert len(fit_buckets(widths, least=1).edges) == MAX_BUCKETS + 1


def test_what_no_bucket_holds_keeps_its_own_lengths() -> None:
    buckets = Buckets(np.array([[8, 4, 5], [16, 4, 5]]))
    assert buckets.around(9, 0, 5) == (16, 4, 5)
    assert buckets.around(9, 5, 5) == (9, 5, 5)


@pytest.mark.parametrize("method", METHODS)
def test_batches_of_a_bucket_have_one_shape(method: str) -> None:
    config = lora_config(**{"method": method, "latent.num_tokens": LATENTS, "training.batch_size": 4})
    examples = make_examples(120)
    collator = Collator(METHODS[method], 0, len(PROMPT_IDS), num_latents=config.latent.num_tokens, tokens_per_stage=3)
    order = bucketed(config, examples, collator).order(0)
    keys = {collator.collate([examples[i] for i in order[start : start + 4]]).shape_key() for start in range(0, 120, 4)}
    collator.buckets = None
    own = {collator.collate([examples[i] for i in order[start : start + 4]]).shape_key() for start in range(0, 120, 4)}
    assert len(keys) < len(own)
    assert padded_lengths(config, examples).question.tolist() == [len(example.question) for example in examples]


def test_the_trace_counts_as_the_method_pads_it() -> None:
    examples = make_examples(6)
    traces = {method: padded_lengths(lora_config(method=method), examples).trace.tolist() for method in METHODS}
    full, shortened = (lengths_of(examples, drop).trace.tolist() for drop in (False, True))
    assert traces["kava"] == traces["codi"] == shortened
    assert traces["full_cot"] == traces["icot"] == traces["coconut"] == full
    assert traces["no_cot"] == [0] * 6


@pytest.mark.parametrize("method", ["kava", "simcot", "full_cot", "coconut"])
def test_padding_changes_no_loss_and_no_gradient(method: str) -> None:
    """To a bucket far longer in all three parts; what is kept of a trace is the same, bit for bit (tests/invariant/test_batching.py)."""
    model, examples = tiny_model(method=method, lora=True), make_examples()
    collator = Collator(model.method, 0, len(PROMPT_IDS), num_latents=LATENTS)
    collator.stage = 1
    plain = collator.collate(examples)
    collator.buckets = Buckets(np.array([[40, 37, 13]]))
    padded = collator.collate(examples)
    assert padded.question_ids.shape == (5, 40)
    assert padded.student.ids.shape == (5, 13 if method in ("kava", "simcot") else 50)
    results = [model(batch) for batch in (plain, padded)]
    for name, value in results[0]["terms"].items():
        assert_close(results[1]["terms"][name], value, what=name)
    expected, found = (gradients(model, result["loss"].mean()) for result in results)
    for name, value in expected.items():
        assert_close(found[name], value, 1e-4, name)


def test_rows_of_a_batch_are_padded_as_the_batch() -> None:
    model, examples = tiny_model(), make_examples()
    batch = Collator(model.method, 0, len(PROMPT_IDS), num_latents=LATENTS).collate(examples)
    first, second = batch.rows(0, 3), batch.rows(3, 5)
    assert (len(first), len(second)) == (3, 2)
    assert first.ids + second.ids == batch.ids
    assert first.shape_key() != batch.shape_key() == batch.rows(0, 5).shape_key()
    together, apart = model(batch)["loss"], torch.cat([model(part)["loss"] for part in (first, second)])
    assert_close(apart, together)
