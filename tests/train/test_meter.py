"""The sums between two log lines: means over examples, however the steps were cut, and the same after a checkpoint."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.tiny import make_batch, make_examples, tiny_model
from kava.train.guard import RecordedBatch
from kava.train.meter import LossMeter

BATCH = make_batch(tiny_model(method="no_cot"), make_examples(1))
NORM = torch.tensor(1.5)


def seen(*parts: list[float]) -> list[RecordedBatch]:
    """Micro-batches with these losses per example; `student_ce` is half of each."""
    return [RecordedBatch(BATCH, {}, {"loss": torch.tensor(part), "student_ce": torch.tensor(part) / 2}) for part in parts]


@given(st.lists(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=4), min_size=1, max_size=5))
def test_the_mean_is_over_examples_however_they_are_cut(parts: list[list[float]]) -> None:
    """Cut into micro-batches of one step, into steps, or not at all."""
    every = [loss for part in parts for loss in part]
    expected = sum(every) / len(every)
    meters = [LossMeter(), LossMeter(), LossMeter()]
    meters[0].add(seen(*parts), len(every))
    meters[1].add(seen(every), len(every))
    for part in parts:
        meters[2].add(seen(part), len(part))
    for meter in meters:
        entry = meter.take(NORM, 0.1)
        assert (entry["loss"], entry["student_ce"]) == pytest.approx((expected, expected / 2))


def test_a_log_line_takes_what_was_added_since_the_last_one() -> None:
    meter = LossMeter()
    meter.add(seen([4.0, 2.0]), 2)
    meter.time(2, 0.5)
    assert meter.take(NORM, 0.1) == {"loss": 3.0, "grad_norm": 1.5, "learning_rate": 0.1, "student_ce": 1.5, "examples_per_second": 4.0}
    meter.add(seen([7.0]), 1)
    assert meter.take(NORM, 0.1)["loss"] == 7.0
    # Every step was skipped: there are no losses to log, and JSON has no infinity.
    assert meter.take(torch.tensor(torch.inf), 0.1) == {"learning_rate": 0.1}


def test_a_meter_goes_on_from_a_checkpoint() -> None:
    """Losses to the last bit; what was timed before the stop does not count."""
    meter = LossMeter()
    meter.add(seen([0.1, 0.2], [0.3]), 3)
    resumed = LossMeter(**json.loads(json.dumps(meter.state())))
    resumed.time(1, 2.0)
    for one in (meter, resumed):
        one.add(seen([0.7]), 1)
    assert resumed.take(NORM, 0.1) == meter.take(NORM, 0.1) | {"examples_per_second": 0.5}


@pytest.mark.parametrize("sums", [{"loss": "many"}, {"loss": None}, {"loss": [1.0]}])
def test_sums_that_are_no_numbers_are_refused_at_once(sums: dict[str, float]) -> None:
    with pytest.raises((TypeError, ValueError)):
        LossMeter(sums, 1)
