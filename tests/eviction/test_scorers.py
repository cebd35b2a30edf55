"""Every scorer against the naive float64 loops, and what the formulas promise."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.traces import alone, make_trace
from kava.eviction import SCORERS, Options, Trace, compress
from kava.eviction.attention import normalised_importance
from kava.eviction.cosine import redundancy
from kava.eviction.ordered_sum import ordered_sum
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


def test_importance_and_redundancy_sum_to_one_and_are_zero_at_padding() -> None:
    trace = make_trace([9, 1, 6], length=12)
    for term in (normalised_importance(trace), redundancy(trace)):
        torch.testing.assert_close(term.sum(-1), torch.ones(2, 3, 3))
        assert not term[:, ~trace.mask.unsqueeze(1).expand(-1, 3, -1)].any()


def test_head_without_attention_gets_uniform_importance() -> None:
    trace = make_trace([4], length=6)
    importance = normalised_importance(replace(trace, importance=torch.zeros_like(trace.importance)))
    assert importance[1, 0, 2].tolist() == [0.25, 0.25, 0.25, 0.25, 0, 0]


def test_rkv_ends_at_attention_and_cosine() -> None:
    trace = make_trace(COUNTS, length=18)
    assert torch.equal(SCORERS["rkv"](trace, Options(4, lam=1.0)), SCORERS["attention"](trace, OPTIONS))
    assert torch.equal(SCORERS["rkv"](trace, Options(4, lam=0.0)), SCORERS["cosine"](trace, OPTIONS))


def test_redundancy_by_hand() -> None:
    """Keys a, a, -b with a orthogonal to b: the mean cosines are 1/3, 1/3, 0."""
    keys = torch.tensor([[2.0, 0.0], [0.5, 0.0], [0.0, -3.0]]).view(1, 1, 1, 3, 2)
    trace = Trace(keys, keys, torch.ones(1, 1, 1, 3), torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, dtype=torch.int64))
    low = torch.exp(torch.tensor(-1 / 3))
    torch.testing.assert_close(redundancy(trace)[0, 0, 0], torch.stack([low, low, torch.tensor(1.0)]) / (2 * low + 1))


def test_zero_key_has_cosine_zero() -> None:
    trace = make_trace([5], length=5)
    trace.keys[:, :, :, 2] = 0
    expected = torch.tensor(naive.redundancy(trace.keys[0, 0, 0].tolist()))
    torch.testing.assert_close(redundancy(trace)[0, 0, 0], expected)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 40), seed=st.integers(0, 10_000))
def test_redundancy_follows_a_permutation_of_the_trace(count: int, seed: int) -> None:
    torch.manual_seed(seed)
    trace = make_trace([count], length=count)
    order = torch.randperm(count)
    moved = redundancy(replace(trace, keys=trace.keys[..., order, :]))
    torch.testing.assert_close(moved, redundancy(trace)[..., order])


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 20), scale=st.floats(1e-3, 1e3))
def test_redundancy_ignores_the_length_of_keys(count: int, scale: float) -> None:
    trace = make_trace([count], length=count)
    torch.testing.assert_close(redundancy(replace(trace, keys=trace.keys * scale)), redundancy(trace))


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


def test_random_is_uniform_and_depends_on_every_part() -> None:
    trace = make_trace([500] * 20, length=500, layers=4, heads=4)
    scores = SCORERS["random"](trace, OPTIONS)
    quantiles = scores.flatten().sort().values[:: scores.numel() // 10][:10]
    torch.testing.assert_close(quantiles, torch.arange(10) / 10, atol=0.01, rtol=0)
    for dim in range(4):  # layer, example, head, position: neighbours are uncorrelated
        first, second = scores.narrow(dim, 0, scores.shape[dim] - 1), scores.narrow(dim, 1, scores.shape[dim] - 1)
        assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.01
    other = SCORERS["random"](trace, Options(4, seed=10))
    assert abs(torch.corrcoef(torch.stack([scores.flatten(), other.flatten()]))[0, 1]) < 0.01


def test_random_uses_both_halves_of_the_example_seed() -> None:
    trace = make_trace([30, 30, 30], length=30)
    trace = replace(trace, example_seed=torch.tensor([5, 5 + 2**32, -5]))
    a, b, c = SCORERS["random"](trace, OPTIONS).unbind(1)
    assert not torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(b, c)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, 70), zeros=st.integers(0, 70))
def test_ordered_sum_is_a_sum_and_ignores_trailing_zeros(size: int, zeros: int) -> None:
    x = torch.randn(3, size, 2)
    padded = torch.cat([x, torch.zeros(3, zeros, 2)], dim=1)
    torch.testing.assert_close(ordered_sum(x, 1), x.sum(1), atol=1e-5, rtol=1e-5)
    assert torch.equal(ordered_sum(x, 1), ordered_sum(padded, 1))


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
