"""`cosine`: keep the entries that differ most from the rest of the trace. The second term of R-KV (arXiv 2505.24133)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kava.eviction.ordered_sum import ordered_sum
from kava.eviction.trace import Options, Trace

MOST_COPIED = 2**24
"""How many numbers of keys are copied to float32 at once, at most: 64 MiB, of which about six copies exist for a moment."""


def redundancy(trace: Trace) -> Float[Tensor, "L B H C"]:
    """R_i = softmax_i( -(1/C) sum_{j != i} cos(k_i, k_j) ) over an example's C real entries; sums to 1, 0 at padding.

    Large where a key is *unlike* the others. The cosine with a zero key is 0.
    """
    # Not all layers at once: the float32 copies of the keys are the largest tensors of the whole eviction.
    together = max(1, MOST_COPIED // max(1, trace.keys[0].numel()))
    return torch.cat([_redundancy(keys, trace.mask) for keys in trace.keys.split(together)])


def _redundancy(keys: Float[Tensor, "l B H C D"], mask: Bool[Tensor, "B C"]) -> Float[Tensor, "l B H C"]:
    """Cost C D: sum_{j != i} cos(k_i, k_j) = u_i . (sum_j u_j - u_i) with unit keys u, so no C x C matrix is needed."""
    real = mask[:, None, :]
    keys = keys.float().masked_fill(~real[..., None], 0)
    norms = ordered_sum(keys.square(), -1).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    units = keys / norms[..., None]
    others = ordered_sum(units, -2)[..., None, :] - units
    counts = mask.sum(-1)[:, None, None].clamp_min(1)
    mean_cosine = ordered_sum(units * others, -1) / counts
    # A mean of cosines lies in [-1, 1], so the softmax need not subtract the maximum.
    weights = (-mean_cosine).exp().masked_fill(~real, 0)
    total = ordered_sum(weights, -1)[..., None]
    return (weights / total).masked_fill(~real, 0)


def cosine(trace: Trace, options: Options) -> Float[Tensor, "L B H C"]:
    """Score by redundancy only: R-KV with lambda = 0."""
    return trace.hide_padding(redundancy(trace))
