"""Input of a scorer: one cached chain of thought per example, and the options of the eviction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kava.errors import UserError
from kava.methods import WINDOW


@dataclass(frozen=True, eq=False)
class Trace:
    """The teacher's cache over the (shortened) chain of thought of a batch. Symbols: docs/notation.md.

    The real tokens of an example come first and padding follows, so positions count from the first CoT token. Padding may hold
    anything, NaN included: nothing here reads it.
    """

    keys: Float[Tensor, "L B H C D"]
    """Keys after RoPE; a loss that compares keys before RoPE (`kv_rope: pre`) removes the rotation from the selected ones."""
    values: Float[Tensor, "L B H C D"]
    importance: Float[Tensor, "L B H C"]
    """Attention probability, mean over the answer tokens, reduced from query heads to KV heads; not normalised over C."""
    mask: Bool[Tensor, "B C"]
    """True at real CoT tokens."""
    example_seed: Int[Tensor, " B"]
    """A hash of each example's content, so that `random` does not depend on the batch."""

    @classmethod
    def from_cache(
        cls,
        cache: Any,
        attentions: Sequence[Tensor],
        *,
        start: int = 0,
        stop: int | None = None,
        mask: Tensor | None = None,
        group_reduction: str = "max",
    ) -> "Trace":
        """Build a trace from a transformers cache of any causal language model.

        output = model(input_ids=ids, use_cache=True, output_attentions=True)
        trace = Trace.from_cache(output.past_key_values, output.attentions, start=question_length, stop=trace_end)

        Args:
            cache: a `DynamicCache`, or (keys, values) per layer, each [B, H, S, D].
            attentions: probabilities per layer, [B, Nh, S', S], of a model with ``attn_implementation="eager"``; importance is taken
                from the rows after the trace (from all S' rows if they belong to another forward pass than the trace, or if nothing comes
                after it).
            start: first entry of the trace within the cache; default: the first entry of the cache.
            stop: end of the trace within the cache; default: the end of the cache.
            mask: true at real entries of the trace, which come first, [B, C]; default: all are.
            group_reduction: "max" or "mean" over the query heads that share a key/value head.

        Raises:
            UserError: there are no attention probabilities, the shapes do not fit each other, or the trace is not within the cache.
        """
        if not attentions:
            raise UserError("the pass returned no attention probabilities: load the model with attn_implementation='eager'")
        layers = [(layer.keys, layer.values) for layer in cache.layers] if hasattr(cache, "layers") else list(cache)
        keys, values = (torch.stack([pair[part] for pair in layers]).detach() for part in (0, 1))
        _, batch, heads, length, _ = keys.shape
        stop = length if stop is None else stop
        probabilities = torch.stack([layer.detach().float() for layer in attentions])
        if len(attentions) != len(layers) or probabilities.shape[1] != batch or probabilities.shape[2] % heads:
            raise UserError(f"attentions {tuple(probabilities.shape)} do not fit a cache of {tuple(keys.shape)}: take both from one pass")
        if not 0 <= start < stop <= min(length, probabilities.shape[-1]):
            raise UserError(f"the trace cannot be entries {start} to {stop} of a cache of {length}; give start and stop within it")
        rows = probabilities.shape[3]
        answer = probabilities[..., stop:, :] if rows == probabilities.shape[4] and stop < rows else probabilities
        by_head = answer[..., start:stop].mean(3).unflatten(2, (heads, -1))
        importance = by_head.amax(3) if group_reduction == "max" else by_head.mean(3)
        mask = torch.ones(batch, stop - start, dtype=torch.bool, device=keys.device) if mask is None else mask.bool()
        if mask.shape != (batch, stop - start):
            raise UserError(f"mask {tuple(mask.shape)} does not fit a trace of {batch} examples and {stop - start} entries")
        importance = importance * mask[None, :, None]
        seeds = torch.zeros(batch, dtype=torch.long, device=keys.device)
        return cls(keys[..., start:stop, :], values[..., start:stop, :], importance, mask, seeds)

    def hide_padding(self, scores: Float[Tensor, "L B H C"]) -> Float[Tensor, "L B H C"]:
        """Give padding the score -inf."""
        return scores.masked_fill(~self.mask[None, :, None, :], -torch.inf)

    def by_position(self, scores: Float[Tensor, "#B C"]) -> Float[Tensor, "L B H C"]:
        """Give every layer and head the same score per position, and padding -inf."""
        return self.hide_padding(scores[None, :, None, :].expand_as(self.importance))


def candidates(mask: Bool[Tensor, "B C"]) -> Bool[Tensor, "B C"]:
    """Return a mask of the real entries before the window of the last 8."""
    return torch.arange(mask.shape[1], device=mask.device) < mask.sum(-1, keepdim=True) - WINDOW


@dataclass(frozen=True)
class Options:
    """Options of the eviction, from the configuration."""

    num_slots: int
    """M, entries to keep."""
    lam: float = 0.1
    """Weight of importance against redundancy (`rkv.lambda`), 0 to 1."""
    seed: int = 0
    """Seed of `random`."""


Scorer = Callable[[Trace, Options], Float[Tensor, "L B H C"]]
"""Returns scores of all entries in float32; higher scores are kept first, -inf at padding."""
