"""Attention over short sequences on a CPU, as two batched products.

torch's flash kernel for CPUs saves memory that short sequences do not need and pays for it in its backward pass, and
transformers copies grouped keys and values for it. Here the query heads of a group are rows of one product with their KV head.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Scores per head that the backward pass may keep; longer sequences go to the flash kernel, so that no S x S tensor grows.
MAX_SCORES = 128 * 128


def is_short(query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]) -> bool:
    """Whether `attend_short` can take this call: float32 on a CPU, few scores, a mask as SDPA's or none needed, nothing extra."""
    queries, keys = query.shape[2], key.shape[2]
    masked = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.dim() == 4 and mask.shape[1] == 1
    return (
        query.device.type == "cpu"
        and query.dtype == key.dtype == torch.float32
        and queries * keys <= MAX_SCORES
        and (masked or (mask is None and queries == 1))
        and not kwargs.get("dropout")
        and all(kwargs.get(extra) is None for extra in ("position_bias", "cache", "softcap", "s_aux"))
        and not torch.is_autocast_enabled("cpu")
    )


def attend_short(
    query: Float[Tensor, "B Nh n D"],
    key: Float[Tensor, "B H S D"],
    value: Float[Tensor, "B H S Dv"],
    mask: Bool[Tensor, "#B 1 n S"] | None,
    scaling: float | None,
) -> Float[Tensor, "B n Nh Dv"]:
    """softmax(scaling q k^T) v over the entries that `mask` shows; a row that sees nothing gets some finite mixture."""
    batch, query_heads, queries, width = query.shape
    heads, entries = key.shape[1:3]
    rows = query.reshape(batch * heads, -1, width)
    scale = width**-0.5 if scaling is None else scaling
    columns = key.reshape(batch * heads, entries, width).transpose(1, 2)
    scores = torch.baddbmm(rows.new_empty(()), rows, columns, beta=0, alpha=scale).view(batch, query_heads, queries, entries)
    if mask is not None:
        # In place: the product does not need its result for the gradient.
        scores += torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    weights = scores.softmax(-1).view(batch * heads, -1, entries)
    mixed = torch.bmm(weights, value.reshape(batch * heads, entries, -1))
    return mixed.view(batch, query_heads, queries, -1).transpose(1, 2)
