"""Length-sorted batches: everything once, little padding, a function of seed and epoch."""

import random
from itertools import pairwise

from kava.train.sampler import LengthSortedSampler

LENGTHS = random.Random(1).choices(range(20, 120), k=5003)


def order(seed: int = 0, epoch: int = 0) -> list[int]:
    sampler = LengthSortedSampler(LENGTHS, 16, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def padding(indices: list[int]) -> float:
    batches = [[LENGTHS[i] for i in indices[start : start + 16]] for start in range(0, len(indices), 16)]
    return 1 - sum(map(sum, batches)) / sum(max(batch) * len(batch) for batch in batches)


def test_every_example_comes_once() -> None:
    assert sorted(order()) == list(range(len(LENGTHS)))


def test_padding_stays_under_five_percent_where_a_plain_shuffle_wastes_a_third() -> None:
    shuffled = list(range(len(LENGTHS)))
    random.Random(2).shuffle(shuffled)
    assert padding(order()) < 0.05
    assert padding(shuffled) > 0.3


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert order(3, 2) == order(3, 2)
    assert order(3, 2) != order(3, 1)
    assert order(3, 2) != order(4, 2)


def test_batches_come_in_mixed_order() -> None:
    firsts = [LENGTHS[i] for i in order()[::16]]
    assert sum(a > b for a, b in pairwise(firsts)) < 0.6 * len(firsts)
