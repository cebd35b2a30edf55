"""Eviction: compress a teacher's cached chain of thought to M entries per layer and KV head (docs/notation.md, method section 4).

To add a scorer: write the function NAME in NAME.py beside the others, and add NAME to `kava.methods.EVICTIONS`.
"""

from dataclasses import dataclass
from importlib import import_module

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kava.eviction.selection import gather, select, shared
from kava.eviction.trace import Options, Scorer, Trace
from kava.methods import EVICTIONS

__all__ = ["SCORERS", "Compressed", "Options", "Scorer", "Trace", "compress", "gather", "select"]

SCORERS: dict[str, Scorer] = {name: getattr(import_module(f"kava.eviction.{name}"), name) for name in EVICTIONS}


@dataclass(frozen=True, eq=False)
class Compressed:
    """The teacher's target for the M latents: slot m is the m-th kept entry in time."""

    keys: Float[Tensor, "L B H M D"]
    """In the trace's dtype; zero in empty slots."""
    values: Float[Tensor, "L B H M D"]
    indices: Int[Tensor, "L B H M"]
    """Position in the trace; 0 in empty slots."""
    slot_mask: Bool[Tensor, "B M"]
    """True at slots that hold an entry: the first min(C, M) of each example."""


@torch.no_grad()
def compress(trace: Trace, eviction: str, num_slots: int, lam: float, seed: int = 0, share: str = "head") -> Compressed:
    """Score, select, gather. Each example gets what it would get alone, bit for bit; nothing carries a gradient.

    Args:
        trace: the teacher's cache over the chain of thought.
        eviction: a name in `SCORERS`.
        num_slots: M, at least 0.
        lam: weight of importance in `rkv`; the other scorers ignore it.
        seed: seed of `random`; the other scorers ignore it.
        share: one choice of entries per "head", per "layer", or for "all" layers and heads, by the scores' mean.

    Raises:
        KeyError: `eviction` is no scorer (`kava.config` refuses such a name first).
    """
    scores = shared(SCORERS[eviction](trace, Options(num_slots, lam, seed)), share)
    indices, slot_mask = select(scores, trace.mask, num_slots)
    keys, values = gather(trace, indices)
    empty = ~slot_mask[None, :, None, :, None]
    return Compressed(keys.masked_fill(empty, 0), values.masked_fill(empty, 0), indices, slot_mask)
