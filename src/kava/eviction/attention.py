"""`attention`: keep the entries that the answer attends to most. The first term of R-KV (arXiv 2505.24133)."""

import torch
from jaxtyping import Float
from torch import Tensor

from kava.eviction.ordered_sum import ordered_sum
from kava.eviction.trace import Options, Trace


def normalised_importance(trace: Trace) -> Float[Tensor, "L B H C"]:
    """I: importance, scaled to sum to 1 over an example's real entries; 0 at padding.

    If a head gives the trace no attention at all, all of its entries get 1 / C.
    """
    real = trace.mask[None, :, None, :]
    importance = trace.importance.float().masked_fill(~real, 0)
    total = ordered_sum(importance, -1)[..., None]
    counts = trace.mask.sum(-1)[None, :, None, None].clamp_min(1)
    return torch.where(total > 0, importance / total, 1 / counts).masked_fill(~real, 0)


def attention(trace: Trace, options: Options) -> Float[Tensor, "L B H C"]:
    """Score by importance only: R-KV with lambda = 1."""
    return trace.hide_padding(normalised_importance(trace))
