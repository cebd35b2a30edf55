"""The projection of latents: its size at the start is that of the tokens that enter the backbone."""

import pytest
import torch
from torch import nn

from kava.model.projection import Projection, build_projection, entering_size


class Scaled(nn.Embedding):
    """An embedding that multiplies its rows, as Gemma's does."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * 4


def test_latents_enter_at_the_size_of_the_embeddings() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(200, 16)
    nn.init.normal_(embedding.weight, std=0.02)
    size = float(embedding.weight.detach().pow(2).mean().sqrt())
    assert entering_size(embedding) == pytest.approx(size)
    projection = build_projection(True, 16, embedding)
    latents = projection(100 * torch.randn(2, 3, 16))
    torch.testing.assert_close(latents.pow(2).mean(-1).sqrt(), torch.full((2, 3), size), rtol=1e-2, atol=0)


def test_what_the_embedding_does_to_its_rows_counts() -> None:
    embedding = Scaled(10, 16)
    assert entering_size(embedding) == pytest.approx(4 * float(embedding.weight.detach().pow(2).mean().sqrt()))


def test_embeddings_of_zeros_and_those_without_values_have_a_size() -> None:
    embedding = nn.Embedding(10, 16)
    nn.init.zeros_(embedding.weight)
    assert entering_size(embedding) == 0.0
    assert entering_size(nn.Embedding(10, 16, device="meta")) == 1.0


def test_without_a_projection_latents_stay_as_they_are() -> None:
    hidden = torch.randn(1, 2, 16)
    assert build_projection(False, 16, nn.Embedding(10, 16))(hidden) is hidden


def test_half_precision_comes_in_and_float32_goes_out() -> None:
    assert Projection(16)(torch.randn(1, 2, 16, dtype=torch.bfloat16)).dtype == torch.float32
