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
    """The teacher's target for the M latents: slot m is the m-th kept entry in time order."""

    keys: Float[Tensor, "L B H M D"]
    """In the trace's dtype; zero in empty slots."""
    values: Float[Tensor, "L B H M D"]
    indices: Int[Tensor, "L B H M"]
    """Position in the trace; 0 in empty slots."""
    slot_mask: Bool[Tensor, "B M"]
    """True at slots that hold an entry: the first min(C, M) of each example."""


@torch.no_grad()
def compress(trace: Trace, eviction: str, num_slots: int, lam: float, seed: int = 0, share: str = "head") -> Compressed:
    """Compress a trace: score, select, gather. The result of an example does not depend on its batch, bit for bit; no gradient flows.

    Args:
        trace: the teacher's cache over the chain of thought.
        eviction: a name in `SCORERS`.
        num_slots: M, at least 0.
        lam: weight of importance in `rkv`; the other scorers ignore it.
        seed: seed of `random`; the other scorers ignore it.
        share: select entries per "head", per "layer", or once for "all" layers and heads, by the mean of the scores.

    Raises:
        KeyError: `eviction` is not a scorer (`kava.config` refuses such a name earlier).
    """
    scores = shared(SCORERS[eviction](trace, Options(num_slots, lam, seed)), share)
    indices, slot_mask = select(scores, trace.mask, num_slots)
    keys, values = gather(trace, indices)
    empty = ~slot_mask[None, :, None, :, None]
    return Compressed(keys.masked_fill(empty, 0), values.masked_fill(empty, 0), indices, slot_mask)
