"""Length-sorted batches: everything once, little padding, a function of seed and epoch."""

from itertools import pairwise

import numpy as np
import pytest

from kava.data.encoded_rows import Lengths
from kava.train.sampler import LengthSortedSampler, padding_share


def lengths(count: int) -> Lengths:
    """Questions and traces of lengths that have little to do with each other, as GSM8K's have."""
    rng = np.random.default_rng(1)
    return Lengths(rng.integers(20, 120, count), rng.integers(5, 80, count), rng.integers(3, 6, count))


LENGTHS = lengths(5003)


def order(seed: int = 0, epoch: int = 0, of: Lengths = LENGTHS) -> list[int]:
    return LengthSortedSampler(of, 16, seed).order(epoch).tolist()


def padding(indices: np.ndarray | list[int]) -> float:
    return padding_share(LENGTHS, indices, 16)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 32, 33, 48, 5003])
def test_every_example_comes_once(count: int) -> None:
    assert sorted(order(of=lengths(count))) == list(range(count))


def test_padding_is_counted_apart_for_questions_and_what_follows() -> None:
    of = Lengths(np.array([2, 4, 3]), np.array([5, 0, 1]), np.array([1, 1, 1]))
    # Widths (2, 6) and (4, 1) take 2 x (4 + 6) positions, (3, 2) alone takes its own 5.
    assert padding_share(of, [0, 1, 2], 2) == pytest.approx(1 - 18 / 25)


def test_little_is_padding_where_a_shuffle_wastes_a_quarter_and_one_order_a_sixth() -> None:
    shuffled = np.random.default_rng(2).permutation(len(LENGTHS))
    assert padding(order()) < 0.08
    assert padding(LENGTHS.total.argsort()) > 0.16
    assert padding(shuffled) > 0.25


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert order(3, 2) == order(3, 2)
    assert order(3, 2) != order(3, 1)
    assert order(3, 2) != order(4, 2)


def test_other_examples_meet_in_every_epoch() -> None:
    def pairs(epoch: int) -> set[frozenset[int]]:
        indices = order(epoch=epoch)
        return {frozenset(pair) for start in range(0, 4992, 16) for pair in pairwise(sorted(indices[start : start + 16]))}

    first, second = pairs(0), pairs(1)
    assert len(first & second) < 0.25 * len(first)


def test_batches_come_in_mixed_order() -> None:
    firsts = LENGTHS.total[order()[::16]]
    assert sum(a > b for a, b in pairwise(firsts)) < 0.6 * len(firsts)
