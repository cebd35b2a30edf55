"""Latent hidden state -> input embedding of the next latent: Linear, GELU, Linear, LayerNorm (method.md, section 3)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Projection(nn.Module):
    """The learned map from hidden states to input embeddings.

    Args:
        hidden_size: E.
        embedding_scale: root mean square of the backbone's token embeddings. LayerNorm's gain starts there, so that
            latents enter the backbone at the size of the tokens it knows.
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


def build_projection(use: bool, hidden_size: int, embeddings: Float[Tensor, "V E"]) -> nn.Module:
    """The projection, or the identity (`loss.use_projection: false`)."""
    if not use:
        return nn.Identity()
    scale = torch.linalg.vector_norm(embeddings.detach().float()) / embeddings.numel() ** 0.5
    return Projection(hidden_size, float(scale))
