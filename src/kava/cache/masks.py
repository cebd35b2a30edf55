"""Additive attention masks from boolean ones, created once for all layers of a pass."""

import torch
from torch import Tensor

_MADE = "kava_additive"


def additive(mask: Tensor, dtype: torch.dtype, lowest: float) -> Tensor:
    """Zero where a boolean mask is True, `lowest` where it is False.

    torch creates such a tensor from a boolean mask in every attention call and keeps each for the backward pass: L tensors of size
    S x K. The boolean mask is the same object in every layer, so the result is cached on it and lives as long as it does.
    """
    if torch.compiler.is_compiling():
        return _make(mask, dtype, lowest)
    made: dict[tuple[torch.dtype, float], Tensor] | None = getattr(mask, _MADE, None)
    if made is None:
        made = {}
        setattr(mask, _MADE, made)
    if (dtype, lowest) not in made:
        made[dtype, lowest] = _make(mask, dtype, lowest)
    return made[dtype, lowest]


def _make(mask: Tensor, dtype: torch.dtype, lowest: float) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, lowest)
