"""Boolean masks as numbers to add to scores, made once for all layers of a pass."""

import torch
from torch import Tensor

_MADE = "kava_additive"


def additive(mask: Tensor, dtype: torch.dtype, lowest: float) -> Tensor:
    """Zero where a boolean mask shows, `lowest` where it hides.

    torch makes such a tensor out of a boolean mask in every attention call and keeps each for the backward pass: L tensors of size
    S x K. The mask itself is the same object in every layer, so that what is made of it can live as long as it does.
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
