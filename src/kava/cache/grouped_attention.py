"""SDPA with grouped queries and a mask, without a copy of keys and values for every query head.

torch's fused kernels take grouped queries only without a mask, and transformers then repeats keys and values G times, in every layer
and for the backward pass too. Here the G query heads of a group become G times as many queries of one head.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kava.cache.masks import additive

_MADE = "kava_grouped"
_PLAIN = ("position_bias", "cache", "softcap", "s_aux")


def is_grouped(query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]) -> bool:
    """Whether `attend_grouped` can take this call: grouped queries, a boolean mask that all heads share, nothing extra, not compiled."""
    masked = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.dim() == 4 and mask.shape[1] == 1
    if torch.compiler.is_compiling():
        return False
    return masked and query.shape[1] != key.shape[1] and all(kwargs.get(extra) is None for extra in _PLAIN)


def attend_grouped(
    query: Float[Tensor, "B Nh n D"],
    key: Float[Tensor, "B H S D"],
    value: Float[Tensor, "B H S Dv"],
    mask: Bool[Tensor, "#B 1 n S"],
    scaling: float | None,
    dropout: float = 0.0,
) -> Float[Tensor, "B n Nh Dv"]:
    """softmax(scaling q k^T) v over the entries that `mask` shows."""
    batch, query_heads, queries, width = query.shape
    heads = key.shape[1]
    group = query_heads // heads
    rows = query.reshape(batch, heads, group * queries, width)
    bias = _for_groups(mask, query.dtype, group)
    mixed = scaled_dot_product_attention(rows, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling)
    # One copy: torch's kernels store what they return in different orders, none of them this one.
    return mixed.view(batch, heads, group, queries, -1).permute(0, 3, 1, 2, 4).reshape(batch, queries, query_heads, -1)


def _for_groups(mask: Tensor, dtype: torch.dtype, group: int) -> Tensor:
    """The additive mask of all G n rows, created once for all layers and cached on `mask`."""
    made: dict[tuple[torch.dtype, int], Tensor] = getattr(mask, _MADE, {})
    if (dtype, group) not in made:
        bias = additive(mask, dtype, -torch.inf)
        made[dtype, group] = bias[:, :, None].expand(-1, -1, group, -1, -1).reshape(bias.shape[0], 1, -1, bias.shape[-1])
        setattr(mask, _MADE, made)
    return made[dtype, group]
