"""Turns taken, medians, and memory that is really that of one run."""

import os
from collections.abc import Callable
from functools import partial

import pytest

from kava.errors import UserError
from kava.tools.bench.timing import alternate, peak_memory

MIB = 2**20


def fill(mebibytes: int) -> None:
    """Write that many MiB, so that they are resident."""
    assert len(os.urandom(MIB) * mebibytes) == mebibytes * MIB


def prepare_fill(mebibytes: int) -> Callable[[], None]:
    return partial(fill, mebibytes)


def prepare_death() -> Callable[[], None]:
    return partial(os._exit, 137)


def test_variants_take_turns_after_one_unmeasured_round() -> None:
    order: list[str] = []
    seconds = alternate({"a": partial(order.append, "a"), "b": partial(order.append, "b")}, 3)
    assert order == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert all(value >= 0 for values in seconds.values() for value in values)


def test_peak_is_that_of_a_fresh_process() -> None:
    """Not of this one, which is made large first: Linux hands a parent's `ru_maxrss` down to its children."""
    ballast = os.urandom(MIB) * 300
    small, large = peak_memory(prepare_fill, 1), peak_memory(prepare_fill, 150)
    assert 140 * MIB < large.above_rest < 200 * MIB
    assert small.above_rest < 30 * MIB
    assert large.peak < len(ballast)


def test_killed_process_is_one_sentence() -> None:
    with pytest.raises(UserError, match="was killed, most likely because memory ran out; take a smaller --shape"):
        peak_memory(prepare_death)
