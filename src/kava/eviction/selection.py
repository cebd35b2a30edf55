"""Select the top M entries by score, in time order, and gather their keys and values."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from kava.eviction.ordered_sum import ordered_sum
from kava.eviction.trace import Trace


def shared(scores: Float[Tensor, "L B H C"], share: str) -> Float[Tensor, "L B H C"]:
    """Return the scores to select by: those of each "head", their mean over the heads of a "layer", or over "all" layers and heads."""
    if share == "head":
        return scores
    mean = ordered_sum(scores, 2)[:, :, None] / scores.shape[2]
    if share == "all":
        mean = ordered_sum(mean, 0)[None] / scores.shape[0]
    return mean.expand_as(scores)


def select(
    scores: Float[Tensor, "L B H C"], mask: Bool[Tensor, "B C"], num_slots: int
) -> tuple[Int[Tensor, "L B H M"], Bool[Tensor, "B M"]]:
    """Select the M real entries with the highest scores per layer and head, in time order.

    Args:
        scores: higher scores are kept first; of equal scores the earlier entry wins. Scores of padding are ignored.
        mask: true at real entries, which come first.
        num_slots: M.

    Returns:
        indices: ascending positions; an example with C < M real entries has all of them in its first C slots, then zeros.
        slot_mask: true at the min(C, M) slots that hold an entry.
    """
    length = scores.shape[-1]
    ranked = scores.masked_fill(~mask[None, :, None, :], -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    kept = pad(ranked[..., :num_slots], (0, max(num_slots - length, 0)), value=length)
    slot_mask = torch.arange(num_slots, device=mask.device) < mask.sum(-1, keepdim=True)
    empty = ~slot_mask[None, :, None, :]
    in_time_order = kept.masked_fill(empty, length).sort(dim=-1).values
    return in_time_order.masked_fill(empty, 0), slot_mask


def gather(trace: Trace, indices: Int[Tensor, "L B H M"]) -> tuple[Float[Tensor, "L B H M D"], Float[Tensor, "L B H M D"]]:
    """Return keys and values at `indices`, in the trace's dtype; zeros for a trace padded to length 0, which has nothing to gather."""
    head_size = trace.keys.shape[-1]
    if trace.keys.shape[-2] == 0:
        empty = trace.keys.new_zeros(*indices.shape, head_size)
        return empty, trace.values.new_zeros(empty.shape)
    wide = indices[..., None].expand(*indices.shape, head_size)
    return trace.keys.gather(-2, wide), trace.values.gather(-2, wide)
