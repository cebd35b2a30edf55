"""Latent hidden state -> input embedding of the next latent: Linear, GELU, Linear, LayerNorm (method.md, section 3)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_PROBED = 64


class Projection(nn.Module):
    """The learned projection from hidden states to input embeddings.

    Args:
        hidden_size: E.
        embedding_scale: root mean square of the backbone's token embeddings, as they enter it. LayerNorm's gain is initialized to it, so
            that latents enter the backbone at the same scale as tokens.
    """

    def __init__(self, hidden_size: int, embedding_scale: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
        self.norm = nn.LayerNorm(hidden_size)
        nn.init.constant_(self.norm.weight, embedding_scale)

    def forward(self, hidden: Float[Tensor, "B M E"]) -> Float[Tensor, "B M E"]:
        """Input embeddings for the positions that follow `hidden`'s."""
        projected: Tensor = self.norm(self.layers(hidden.to(self.norm.weight.dtype)))
        return projected


def build_projection(use: bool, hidden_size: int, embedding: nn.Module) -> nn.Module:
    """The projection, or the identity (`loss.use_projection: false`), for a backbone with these input embeddings."""
    return Projection(hidden_size, entering_size(embedding)) if use else nn.Identity()


def entering_size(embedding: nn.Module) -> float:
    """Root mean square of token embeddings as they enter the backbone: Gemma's embedding multiplies its rows by sqrt(E)."""
    # peft's wrapper copies the whole matrix to look a row up.
    module: Any = getattr(embedding, "original_module", embedding)
    weight: Tensor = module.weight.detach()
    if weight.is_meta:
        return 1.0
    scale = torch.linalg.vector_norm(weight.float()) / weight.numel() ** 0.5
    with torch.no_grad():
        rows = torch.arange(min(len(weight), _PROBED), device=weight.device)
        entering, stored = (torch.linalg.vector_norm(part.float()) for part in (module(rows), weight[rows]))
    return float(scale * entering / stored) if stored > 0 else float(scale)
