"""Which entries are kept, in which order, and that a batch keeps what each example keeps alone."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.traces import alone, make_trace
from kava.eviction import SCORERS, Trace, compress, gather, select
from oracles import naive


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def full(length: int) -> torch.Tensor:
    return torch.ones(1, length, dtype=torch.bool)


def test_keeps_the_best_in_time_order() -> None:
    scores = torch.tensor([0.1, 0.9, 0.3, 0.8, 0.2]).view(1, 1, 1, 5)
    indices, slot_mask = select(scores, full(5), 3)
    assert indices.tolist() == [[[[1, 2, 3]]]]
    assert slot_mask.tolist() == [[True, True, True]]


def test_of_equal_scores_the_earlier_wins() -> None:
    scores = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]).view(1, 1, 1, 7)
    assert select(scores, full(7), 4)[0].flatten().tolist() == [0, 1, 3, 5]
    assert select(torch.zeros(1, 1, 1, 5000), full(5000), 24)[0].flatten().tolist() == list(range(24))


def test_short_examples_fill_the_first_slots() -> None:
    mask = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
    scores = torch.tensor([1.0, 2.0, 9.0]).expand(1, 3, 1, 3)
    indices, slot_mask = select(scores, mask, 4)
    assert indices[0, :, 0].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 2, 0]]
    assert slot_mask.tolist() == [[True, True, False, False], [False] * 4, [True, True, True, False]]


def test_padding_is_not_kept_whatever_its_score() -> None:
    scores = torch.tensor([-torch.inf, torch.nan, 5.0, torch.inf, torch.nan]).view(1, 1, 1, 5)
    mask = torch.tensor([[True, True, False, False, False]])
    indices, slot_mask = select(scores, mask, 3)
    assert indices.flatten().tolist() == [0, 1, 0]
    assert slot_mask.tolist() == [[True, True, False]]


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compress_equals_naive_loops(name: str, dtype: torch.dtype) -> None:
    counts, num_slots, lam, seed = [13, 6, 5, 1, 0], 6, 0.1, 3
    trace = make_trace(counts, length=15, dtype=dtype)
    result = compress(trace, name, num_slots, lam, seed)
    assert result.keys.dtype == result.values.dtype == dtype
    for b, count in enumerate(counts):
        kept = min(count, num_slots)
        assert result.slot_mask[b].tolist() == [m < kept for m in range(num_slots)]
        for layer in range(2):
            for head in range(3):
                keys = trace.keys[layer, b, head, :count].double().tolist()
                attention = trace.importance[layer, b, head, :count].double().tolist()
                scores = naive.score(name, attention, keys, num_slots, lam, seed, int(trace.example_seed[b]), layer, head) if count else []
                expected = naive.select(scores, num_slots)
                assert result.indices[layer, b, head].tolist() == expected + [0] * (num_slots - kept)
                assert torch.equal(result.keys[layer, b, head, :kept], trace.keys[layer, b, head, expected])
                assert torch.equal(result.values[layer, b, head, :kept], trace.values[layer, b, head, expected])
                assert not result.keys[layer, b, head, kept:].any()
                assert not result.values[layer, b, head, kept:].any()


@pytest.mark.parametrize("share", ["layer", "all"])
def test_a_shared_choice_follows_the_mean_score(share: str) -> None:
    counts, num_slots, lam = [13, 6, 1, 0], 5, 0.3
    trace = make_trace(counts, length=15)
    indices = compress(trace, "rkv", num_slots, lam, share=share).indices
    for b, count in enumerate(counts):
        scores = [
            [
                naive.rkv(trace.importance[layer, b, head, :count].tolist(), trace.keys[layer, b, head, :count].tolist(), lam)
                if count
                else []
                for head in range(3)
            ]
            for layer in range(2)
        ]
        for layer in range(2):
            expected = naive.select(naive.shared(scores, share, layer), num_slots)
            for head in range(3):
                assert indices[layer, b, head].tolist() == expected + [0] * (num_slots - len(expected))
        if count:
            assert torch.equal(compress(alone(trace, b), "rkv", num_slots, lam, share=share).indices, indices[:, b : b + 1])


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("num_slots", [0, 1, 24, 200])
def test_batch_keeps_what_each_example_keeps_alone(name: str, num_slots: int) -> None:
    counts = [90, 1, 0, 24, 23, 25, 64, 65]
    trace = make_trace(counts, length=97, head_size=16)
    trace.keys[:, 0, :, 50:70] = trace.keys[:, 0, :, 10:30]
    trace.importance[:, 0, :, 50:70] = trace.importance[:, 0, :, 10:30]
    together = compress(trace, name, num_slots, 0.1)
    for b in range(len(counts)):
        single = compress(alone(trace, b), name, num_slots, 0.1)
        for field in ("indices", "keys", "values"):
            assert torch.equal(getattr(together, field)[:, b], getattr(single, field)[:, 0]), (field, b)
        assert torch.equal(together.slot_mask[b], single.slot_mask[0])


@pytest.mark.parametrize("name", ["rkv", "cosine"])
def test_of_identical_entries_the_earliest_are_kept(name: str) -> None:
    trace = make_trace([37], length=40)
    trace.keys[..., :37, :] = torch.tensor([0.3, -1.7, 0.11, 2.9, 0.5])
    trace.importance[..., :37] = 0.0137
    assert compress(trace, name, 5, 0.1).indices.view(-1, 5).unique(dim=0).tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("name", SCORERS)
def test_batch_without_any_trace(name: str) -> None:
    result = compress(make_trace([0, 0], length=0), name, 4, 0.1)
    assert result.keys.shape == result.values.shape == (2, 2, 3, 4, 5)
    assert not result.keys.any()
    assert not result.indices.any()
    assert not result.slot_mask.any()


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(sorted(SCORERS)),
    counts=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    extra=st.integers(0, 5),
    num_slots=st.integers(0, 25),
    lam=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_indices_are_ascending_distinct_and_real(name: str, counts: list[int], extra: int, num_slots: int, lam: float, seed: int) -> None:
    trace = make_trace(counts, length=max(counts) + extra)
    result = compress(trace, name, num_slots, lam, seed)
    assert result.indices.shape == (2, len(counts), 3, num_slots)
    for b, count in enumerate(counts):
        kept = min(count, num_slots)
        assert int(result.slot_mask[b].sum()) == kept
        rows = result.indices[:, b].flatten(0, 1)
        assert not rows[:, kept:].any()
        assert (rows[:, :kept] < count).all()
        assert (rows[:, :kept].diff(dim=-1) > 0).all()
    assert not result.keys.isnan().any()
    assert not result.values.isnan().any()


def test_compress_carries_no_gradient() -> None:
    trace = make_trace([6], length=6)
    trace = replace(
        trace, keys=trace.keys.requires_grad_(), values=trace.values.requires_grad_(), importance=trace.importance.requires_grad_()
    )
    result = compress(trace, "rkv", 3, 0.1)
    assert not result.keys.requires_grad
    assert not result.values.requires_grad


def test_gather_takes_each_head_by_its_own_indices() -> None:
    keys = torch.arange(2 * 4 * 1.0).view(1, 1, 2, 4, 1)
    trace = Trace(keys, -keys, keys[..., 0], full(4), torch.zeros(1, dtype=torch.int64))
    taken_keys, taken_values = gather(trace, torch.tensor([[[[0, 3], [1, 2]]]]))
    assert taken_keys.flatten().tolist() == [0, 3, 5, 6]
    assert taken_values.flatten().tolist() == [0, -3, -5, -6]


def test_unknown_eviction_is_an_error() -> None:
    with pytest.raises(KeyError, match="rvk"):
        compress(make_trace([2], length=2), "rvk", 1, 0.1)


def test_config_offers_exactly_the_scorers() -> None:
    from typing import get_args

    from kava.config import RkvConfig

    assert set(get_args(RkvConfig.model_fields["eviction"].annotation)) == set(SCORERS)


@pytest.mark.parametrize("name", SCORERS)
def test_everything_is_made_on_the_traces_device(name: str) -> None:
    """The meta device refuses to meet another device and to be read, so it stands for an accelerator and shows host syncs."""
    trace = make_trace([9, 3], length=12)
    on_meta = Trace(*(getattr(trace, field.name).to("meta") for field in fields(trace)))
    result = compress(on_meta, name, 4, 0.1)
    assert {getattr(result, field.name).device.type for field in fields(result)} == {"meta"}


@pytest.mark.gpu
@pytest.mark.parametrize("name", SCORERS)
def test_the_same_entries_are_kept_on_a_gpu(name: str) -> None:
    trace = make_trace([90, 1, 0, 24, 65], length=97, head_size=16)
    on_gpu = Trace(*(getattr(trace, field.name).to("cuda") for field in fields(trace)))
    assert torch.equal(compress(on_gpu, name, 24, 0.1).indices.cpu(), compress(trace, name, 24, 0.1).indices)
