"""Fused cross-entropy from hidden states, with liger-kernel: the N x V logits are never in memory all at once."""

import os

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kava.errors import UserError
from kava.runtime.optional_packages import require

SETTING = "system.fused_cross_entropy"


def check_fused_available() -> None:
    """Check that the kernels can run here.

    Raises:
        UserError: liger-kernel is not installed, or there is no GPU.
    """
    require("liger-kernel", SETTING, "set it to false")
    # Triton's interpreter runs the kernels on a CPU, slowly; it is used in tests.
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError(f"{SETTING} needs a GPU, and torch sees none here; set it to false")


def fused_token_losses(
    hidden: Float[Tensor, "N E"],
    weight: Float[Tensor, "V E"],
    bias: Float[Tensor, " V"] | None,
    labels: Int[Tensor, " N"],
    softcap: float | None = None,
) -> Float[Tensor, " N"]:
    """Compute the cross-entropy of each token, equal to `cross_entropy(softcap(hidden W^T + bias))`.

    Args:
        hidden: last-layer states, one row per labelled token.
        weight: weight of the language-model head.
        bias: bias of the head, if it has one.
        labels: the token each row should predict.
        softcap: for models with logit soft-capping, logits become softcap * tanh(logits / softcap) first.

    Returns:
        Float32 losses, with gradients for hidden, weight and bias.
    """
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    losses: Tensor = liger_fused_linear_cross_entropy(hidden, weight, labels, bias=bias, reduction="none", softcap=softcap)
    return losses.float()
