"""What holds for every scorer: the numbers of the naive float64 loops, whatever the batch, and no C x C matrix."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.traces import alone, make_trace
from kava.eviction import SCORERS, Options, Trace, compress
from oracles import naive

COUNTS = [11, 4, 1, 0, 7, 16]
OPTIONS = Options(num_slots=4, lam=0.3, seed=9)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def naive_scores(name: str, trace: Trace, layer: int, b: int, head: int, options: Options) -> list[float]:
    count = int(trace.mask[b].sum())
    keys = trace.keys[layer, b, head, :count].double().tolist()
    attention = trace.importance[layer, b, head, :count].double().tolist()
    if not count:
        return []
    return naive.score(name, attention, keys, options.num_slots, options.lam, options.seed, int(trace.example_seed[b]), layer, head)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SCORERS)
def test_scores_equal_naive_loops(name: str, dtype: torch.dtype) -> None:
    trace = make_trace(COUNTS, length=18, dtype=dtype)
    scores = SCORERS[name](trace, OPTIONS)
    assert scores.dtype == torch.float32
    assert scores.shape == trace.importance.shape
    assert torch.isneginf(scores[:, ~trace.mask.unsqueeze(1).expand(-1, 3, -1)]).all()
    for layer in range(2):
        for b, count in enumerate(COUNTS):
            for head in range(3):
                expected = torch.tensor(naive_scores(name, trace, layer, b, head, OPTIONS), dtype=torch.float64)
                torch.testing.assert_close(scores[layer, b, head, :count].double(), expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", SCORERS)
def test_scores_of_a_padded_batch_are_those_of_each_example_alone_bit_for_bit(name: str) -> None:
    counts = [1, 2, 3, 5, 31, 32, 33, 63, 64, 65, 100, 129]
    trace = make_trace(counts, length=150, head_size=24)
    scores = SCORERS[name](trace, OPTIONS)
    for b, count in enumerate(counts):
        assert torch.equal(scores[:, b : b + 1, :, :count], SCORERS[name](alone(trace, b), OPTIONS))


@pytest.mark.parametrize("name", SCORERS)
def test_scores_do_not_depend_on_memory_layout(name: str) -> None:
    trace = make_trace([40, 17], length=40, head_size=24)
    strided = replace(trace, keys=trace.keys.transpose(2, 3).contiguous().transpose(2, 3))
    assert torch.equal(SCORERS[name](trace, OPTIONS), SCORERS[name](strided, OPTIONS))


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return result


# R-KV's own code looks for the last similar neighbour of each entry, and so at all pairs.
@pytest.mark.parametrize("name", [name for name in SCORERS if name != "rkv_original"])
def test_no_c_by_c_matrix_is_made(name: str) -> None:
    length, head_size = 4096, 16
    trace = make_trace([length], length=length, layers=1, heads=1, head_size=head_size)
    with LargestTensor() as largest:
        compress(trace, name, num_slots=8, lam=0.1)
    assert 0 < largest.elements <= length * head_size
