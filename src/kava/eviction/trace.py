"""What a scorer sees: one cached chain of thought per example, and the knobs of the eviction."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Trace:
    """The teacher's cache over the (shortened) chain of thought of a batch. Symbols: docs/notation.md.

    The real tokens of an example come first and padding follows, so positions count from the first CoT token. Padding may hold
    anything, NaN included: nothing here reads it.
    """

    keys: Float[Tensor, "L B H C D"]
    """Keys as the loss will match them (after RoPE, or before it with `kv_rope: pre`)."""
    values: Float[Tensor, "L B H C D"]
    importance: Float[Tensor, "L B H C"]
    """Attention probability, mean over the answer tokens, reduced from query heads to KV heads; not normalised over C."""
    mask: Bool[Tensor, "B C"]
    """True at real CoT tokens."""
    example_seed: Int[Tensor, " B"]
    """A hash of each example's content, so that `random` does not depend on the batch."""

    def hide_padding(self, scores: Float[Tensor, "L B H C"]) -> Float[Tensor, "L B H C"]:
        """Give padding the score -inf."""
        return scores.masked_fill(~self.mask[None, :, None, :], -torch.inf)

    def by_position(self, scores: Float[Tensor, "#B C"]) -> Float[Tensor, "L B H C"]:
        """Give every layer and head the same score per position, and padding -inf."""
        return self.hide_padding(scores[None, :, None, :].expand_as(self.importance))


@dataclass(frozen=True)
class Options:
    """What the configuration says about eviction."""

    num_slots: int
    """M, entries to keep."""
    lam: float = 0.1
    """Weight of importance against redundancy (`rkv.lambda`), 0 to 1."""
    seed: int = 0
    """Seed of `random`."""


Scorer = Callable[[Trace, Options], Float[Tensor, "L B H C"]]
"""Scores of all entries in float32, the higher the sooner kept; -inf at padding."""
