"""Elementwise distances between a teacher's and a student's tensors, by name, and the float type they are computed in."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

Distance = Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]
"""Residual (teacher - student, perhaps scaled) to distance, elementwise, same shape."""

MIN_DEVIATION = 1e-6
"""A teacher tensor that is constant has deviation 0; dividing by at least this keeps losses finite."""


def smooth_l1(residual: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """r^2 / 2 where |r| < 1, |r| - 1/2 elsewhere (beta = 1)."""
    return smooth_l1_loss(residual, residual.new_zeros(()).expand_as(residual), reduction="none", beta=1.0)


def l1(residual: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """|r|."""
    return residual.abs()


def mse(residual: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """r^2."""
    return residual.square()


DISTANCES: dict[str, Distance] = {"smooth_l1": smooth_l1, "l1": l1, "mse": mse}


def at_least_float32(x: Tensor) -> Tensor:
    """Half-precision tensors as float32, wider ones as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
