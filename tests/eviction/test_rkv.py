"""R-KV mixes importance and redundancy."""

import pytest
import torch

from helpers.traces import make_trace
from kava.eviction import SCORERS, Options

COUNTS = [11, 4, 1, 0, 7, 16]
OPTIONS = Options(num_slots=4, lam=0.3, seed=9)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_rkv_ends_at_attention_and_cosine() -> None:
    trace = make_trace(COUNTS, length=18)
    assert torch.equal(SCORERS["rkv"](trace, Options(4, lam=1.0)), SCORERS["attention"](trace, OPTIONS))
    assert torch.equal(SCORERS["rkv"](trace, Options(4, lam=0.0)), SCORERS["cosine"](trace, OPTIONS))
