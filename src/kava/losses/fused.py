"""Fused cross-entropy from hidden states, with liger-kernel: the N x V logits are never in memory all at once."""

import os

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kava.data.collate import IGNORED
from kava.errors import UserError
from kava.runtime.optional_packages import require

SETTING = "system.fused_cross_entropy"


def check_fused_available(device: str | torch.device) -> None:
    """Check that the kernels can run on a device.

    Raises:
        UserError: liger-kernel is not installed, or the device is not a GPU.
    """
    require("liger-kernel", SETTING, "set it to false")
    # Triton's interpreter runs the kernels on a CPU, slowly; it is used in tests.
    if torch.device(device).type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError(f"{SETTING} needs a GPU, and this runs on the CPU; set it to false")


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


def fused_cross_entropy(logits: Float[Tensor, "n V"], labels: Int[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n V"]]:
    """The cross-entropy of each row in float32, 0 where the label is ignored, and its gradient, which overwrites the logits.

    liger-kernel's own function for this counts the labels, and a graph cannot wait for the count; so its kernel is called.
    """
    from liger_kernel.ops.cross_entropy import MAX_FUSED_SIZE, liger_cross_entropy_kernel

    losses = torch.zeros(len(logits), dtype=torch.float32, device=logits.device)
    width = logits.shape[1]
    liger_cross_entropy_kernel[(len(logits),)](
        X_ptr=logits, X_stride=logits.stride(0), Y_ptr=labels, Y_stride=labels.stride(0), weight_ptr=None, loss_ptr=losses, z_loss_ptr=None,
        loss_stride=1, token_accuracy_ptr=None, token_accuracy_stride=0, predicted_tokens_ptr=None, predicted_tokens_stride=0,
        n_cols=width, n_non_ignore=1, sum_non_ignore_weight=1, weight_sum=0.0, ignore_index=IGNORED, lse_square_scale=0.0,
        label_smoothing=0.0, reduction="none", softcap=None, RETURN_Z_LOSS=False, RETURN_TOKEN_ACCURACY=False,
        RETURN_PREDICTED_TOKENS=False, BLOCK_SIZE=min(MAX_FUSED_SIZE, 1 << (width - 1).bit_length()), HAS_WEIGHT=False,
        HAS_SOFTCAPPING=False, HAS_GRADIENTS=True, num_warps=32,
    )  # fmt: skip
    return losses, logits
