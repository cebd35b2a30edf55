"""`rkv_original`: R-KV as in its code (arXiv 2505.24133, github.com/Zefan-Cai/R-KV), which differs from the formulas that KaVa uses.

The attention of the last 8 tokens of the trace scores the tokens before them; the last 8 are always kept. Unlike that of `rkv`, the
redundancy needs all pairs of keys, so its cost grows with C x C.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool1d

from kava.eviction.ordered_sum import ordered_sum
from kava.eviction.trace import Options, Trace, candidates

LAMBDA = 0.07
"""Weight of importance, in place of `rkv.lambda`."""
POOL = 7
"""Window of the max pooling of importance, in entries."""
SIMILAR = 0.5
"""Cosine above which two keys count as similar."""


def rkv_original(trace: Trace, options: Options) -> Float[Tensor, "L B H C"]:
    """Score candidates (all entries but the last 8) by 0.07 importance - 0.93 redundancy; the last 8 get 1, more than any candidate.

    `trace.importance` must be that of the queries of the last 8 tokens over the candidates (`kava.model.passes.read_trace`).
    """
    early = candidates(trace.mask)[None, :, None, :]
    importance = trace.importance.float().masked_fill(~early, 0)
    # Importance is never below 0, so the zeros outside the candidates never win the max pooling.
    pooled = (
        max_pool1d(importance.flatten(0, 1), POOL, stride=1, padding=POOL // 2).view_as(importance) if importance.numel() else importance
    )
    redundant = torch.stack([_redundancy(keys, trace.mask) for keys in trace.keys])
    scores = LAMBDA * pooled - (1 - LAMBDA) * redundant
    return trace.hide_padding(scores.masked_fill(~early, 1.0))


def _redundancy(keys: Float[Tensor, "B H C D"], mask: Bool[Tensor, "B C"]) -> Float[Tensor, "B H C"]:
    """Softmax over an example's C real entries of the mean cosine with the others; large where a key is *like* the others.

    In each row the last neighbour with a cosine above 0.5 is not counted, so that the last of several similar keys is not penalised. In
    a row without such a neighbour the first entry is not counted: R-KV's code uses index 0 for "none".
    """
    real = mask[:, None, :]
    # Computed in float64 and then rounded: in float32 the last bits, and so the kept entries, would depend on the padding.
    wide = keys.double().masked_fill(~real[..., None], 0)
    units = wide / (wide.norm(dim=-1, keepdim=True) + 1e-8)
    place = torch.arange(keys.shape[-2], device=keys.device)
    cosines = (units @ units.transpose(-1, -2)).float().masked_fill(place[:, None] == place, 0)
    spared = torch.where(cosines > SIMILAR, place, 0).amax(-1, keepdim=True) if len(place) else cosines.long()
    cosines = cosines.masked_fill(place == spared, 0)
    means = ordered_sum(cosines, -2) / mask.sum(-1)[:, None, None].clamp_min(1)
    # A mean of cosines lies in [-1, 1], so the softmax need not subtract the maximum.
    weights = means.exp().masked_fill(~real, 0)
    return (weights / ordered_sum(weights, -1)[..., None]).masked_fill(~real, 0)
