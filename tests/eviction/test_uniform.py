"""Entries spread evenly over the trace."""

from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.traces import make_trace
from kava.eviction import SCORERS, Options


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 60), num_slots=st.integers(1, 60))
def test_uniform_picks_distinct_evenly_spaced_entries(count: int, num_slots: int) -> None:
    scores = SCORERS["uniform"](make_trace([count], length=64, layers=1, heads=1), Options(num_slots))
    chosen = scores[0, 0, 0, :count].nonzero().flatten()
    assert len(chosen) == min(count, num_slots)
    gaps = chosen.diff()
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_uniform_by_hand() -> None:
    scores = SCORERS["uniform"](make_trace([8], length=8, layers=1, heads=1), Options(3))
    assert scores[0, 0, 0].nonzero().flatten().tolist() == [1, 4, 6]
