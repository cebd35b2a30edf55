"""The first entries of a trace."""

from helpers.traces import make_trace
from kava.eviction import Options, compress
from kava.eviction.crop import crop


def test_earlier_entries_score_higher() -> None:
    scores = crop(make_trace([5], length=6, layers=1, heads=1), Options(3))
    assert scores[0, 0, 0].tolist() == [0.0, -1.0, -2.0, -3.0, -4.0, float("-inf")]


def test_the_first_entries_are_kept_in_every_layer_and_head() -> None:
    kept = compress(make_trace([5, 2], length=5), "crop", num_slots=3, lam=0.1)
    assert kept.slot_mask.tolist() == [[True, True, True], [True, True, False]]
    assert (kept.indices[:, 0] == kept.indices.new_tensor([0, 1, 2])).all()
    assert (kept.indices[:, 1] == kept.indices.new_tensor([0, 1, 0])).all()
