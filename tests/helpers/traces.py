"""Random traces for tests, and one example of them as it would come alone."""

import torch
from torch import Tensor

from kava.eviction import Trace


def make_trace(
    counts: list[int], length: int, layers: int = 2, heads: int = 3, head_size: int = 5, dtype: torch.dtype = torch.float32
) -> Trace:
    """A batch with `counts` real entries per example, padded to `length` with NaN and 7 in turn, which must never be read."""
    batch = len(counts)
    mask = torch.arange(length) < torch.tensor(counts)[:, None]
    garbage = torch.tensor([torch.nan, 7.0], dtype=dtype).repeat(length)[:length]
    real = mask[None, :, None, :]
    keys, values = torch.randn(2, layers, batch, heads, length, head_size, dtype=dtype)
    keys, values = (torch.where(real[..., None], x, garbage[:, None]) for x in (keys, values))
    importance = torch.where(real, torch.rand(layers, batch, heads, length, dtype=dtype), garbage)
    return Trace(keys, values, importance, mask, torch.randint(-(2**62), 2**62, (batch,)))


def alone(trace: Trace, b: int) -> Trace:
    """Example b without its neighbours and its padding, in a memory layout of its own."""
    count = int(trace.mask[b].sum())

    def cut(x: Tensor) -> Tensor:
        return x[:, b : b + 1, :, :count].clone()

    return Trace(cut(trace.keys), cut(trace.values), cut(trace.importance), trace.mask[b : b + 1, :count], trace.example_seed[b : b + 1])
