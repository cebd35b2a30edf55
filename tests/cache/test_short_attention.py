"""Attention over short sequences: values and gradients are SDPA's, and nothing else is taken."""

from typing import Any

import pytest
import torch
from torch import Tensor

import kava.cache.short_attention as short
from helpers.tiny import assert_close
from kava.cache.short_attention import attend_short, is_short
from kava.runtime.device import as_on_gpu

BATCH, HEADS, GROUP, QUERIES, KEYS, WIDTH = 3, 2, 3, 4, 7, 5


def drawn(queries: int = QUERIES) -> tuple[Tensor, Tensor, Tensor]:
    """Queries laid out as a projection leaves them, keys and values as a cache does; in float64, to compare rounding away."""
    torch.manual_seed(0)
    query = torch.randn(BATCH, queries, HEADS * GROUP, WIDTH, dtype=torch.float64).transpose(1, 2)
    key, value = torch.randn(2, BATCH, HEADS, KEYS, WIDTH, dtype=torch.float64)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def mask_of(queries: int) -> Tensor:
    """Causal, the first entries of two examples being padding."""
    visible = torch.ones(queries, KEYS, dtype=torch.bool).tril(KEYS - queries)
    padding = torch.arange(KEYS) < torch.tensor([0, 1, 3])[:, None]
    return visible[None, None] & ~padding[:, None, None]


@pytest.mark.parametrize("queries", [1, QUERIES])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("masked", [True, False])
def test_values_and_gradients_are_those_of_sdpa(queries: int, scaling: float | None, masked: bool) -> None:
    mask = mask_of(queries) if masked else None
    ours, theirs = drawn(queries), drawn(queries)
    got = attend_short(*ours, mask, scaling)
    repeated = (theirs[0], *(part.repeat_interleave(GROUP, dim=1) for part in theirs[1:]))
    expected = torch.nn.functional.scaled_dot_product_attention(*repeated, attn_mask=mask, scale=scaling).transpose(1, 2)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    (got * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_close(got, expected, 1e-12)
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine.grad, other.grad, 1e-12)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_attended_to_in_float32(autocast: bool) -> None:
    """Only what goes in and what comes out is rounded: 2^-8 of the largest number, under autocast or not."""
    mask = mask_of(QUERIES)
    narrow = [part.detach().bfloat16().requires_grad_() for part in drawn()]
    wide = [part.detach().double().requires_grad_() for part in narrow]
    expected = attend_short(*wide, mask, None)
    expected.sum().backward()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = attend_short(*narrow, mask, None)
        got.sum().backward()
    assert got.dtype == torch.bfloat16
    for mine, other in ((got, expected), *((a.grad, b.grad) for a, b in zip(narrow, wide, strict=True))):
        assert isinstance(mine, Tensor)
        assert isinstance(other, Tensor)
        assert (mine - other).abs().max() <= 2**-8 * other.abs().max()


def test_a_row_that_sees_nothing_is_finite() -> None:
    mask = mask_of(QUERIES)
    mask[2, :, 0] = False
    assert attend_short(*drawn(), mask, None).isfinite().all()


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"mask": None}, False),
        ({"mask": torch.zeros(BATCH, 1, QUERIES, KEYS)}, False),
        ({"query": torch.zeros(BATCH, HEADS * GROUP, QUERIES, WIDTH, dtype=torch.bfloat16)}, False),
        ({"query": torch.zeros(1, 1, 1, WIDTH).bfloat16(), "key": torch.zeros(1, 1, KEYS, WIDTH).bfloat16(), "mask": None}, True),
        ({"dropout": 0.1}, False),
        ({"dropout": 0.0, "softcap": None}, True),
        ({"softcap": 30.0}, False),
        ({"query": torch.zeros(1, 1, short.MAX_SCORES // KEYS + 1, WIDTH)}, False),
        ({"query": torch.zeros(1, 1, short.MAX_SCORES // KEYS, WIDTH)}, True),
        ({"query": torch.zeros(1, 1, 1, WIDTH), "mask": None}, True),
    ],
)
def test_which_calls_are_taken(change: dict[str, Any], taken: bool) -> None:
    query = torch.zeros(BATCH, HEADS * GROUP, QUERIES, WIDTH)
    given = {"query": query, "key": torch.zeros(BATCH, HEADS, KEYS, WIDTH), "mask": mask_of(QUERIES), **change}
    extras = {name: value for name, value in given.items() if name not in ("query", "key", "mask")}
    assert is_short(given["query"], given["key"], given["mask"], extras) is taken


def test_float32_under_autocast_and_what_is_planned_for_gpus_are_left_to_sdpa() -> None:
    query, key = torch.zeros(1, 1, 1, WIDTH), torch.zeros(1, 1, KEYS, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_short(query, key, None, {})
        assert is_short(query.bfloat16(), key.bfloat16(), None, {})
    with as_on_gpu():
        assert not is_short(query, key, None, {})
    assert is_short(query, key, None, {})
