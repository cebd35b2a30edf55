"""Undo the rotary embedding of cached keys (for `kv_rope: pre`), or move keys to other positions (for swaps of latents)."""

import sys
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def unrotate(decoder: Any, keys: Float[Tensor, "L B H M D"], positions: Int[Tensor, "L B H M"]) -> Float[Tensor, "L B H M D"]:
    """Undo the rotary embedding of cached keys, with the architecture's own rotation in reverse.

    Args:
        decoder: the transformers decoder that made the keys. Without rotary positions (GPT-2), keys come back as they are.
        keys: as the cache holds them.
        positions: position id of each key.

    Returns:
        The keys before rotation, differentiable with respect to `keys`.
    """
    rotary = getattr(decoder, "rotary_emb", None)
    if rotary is None:
        return keys
    rotate = sys.modules[type(decoder).__module__].apply_rotary_pos_emb
    # A fused one would modify both arguments in place, and here they are the same tensor (`kava.model.fused_kernels`).
    rotate = getattr(rotate, "plain", rotate)
    layers, batch, heads, slots, width = keys.shape
    flat = keys.reshape(-1, 1, slots, width)
    cos, sin = rotary(flat, position_ids=positions.reshape(-1, slots))
    rotated, rest = flat[..., : cos.shape[-1]], flat[..., cos.shape[-1] :]
    scale = getattr(rotary, "attention_scaling", 1.0) ** 2
    unrotated, _ = rotate(rotated, rotated, cos / scale, -sin / scale)
    return torch.cat([unrotated, rest], dim=-1).view(layers, batch, heads, slots, width)


def rerotate(
    decoder: Any, keys: Float[Tensor, "L B H M D"], source: Int[Tensor, "L B H M"], target: Int[Tensor, "L B H M"]
) -> Float[Tensor, "L B H M D"]:
    """Cached keys of positions `source` as the cache would hold them at positions `target`."""
    rotary = getattr(decoder, "rotary_emb", None)
    # Rotate by the difference; `unrotate` also divides by the attention scaling, which a cached key must keep.
    return unrotate(decoder, keys, source - target) * float(getattr(rotary, "attention_scaling", 1.0))
