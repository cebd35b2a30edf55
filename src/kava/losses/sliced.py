"""Cross-entropy from hidden states with a frozen head, one slice of tokens at a time: the N x V logits are never in memory at once."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from kava.data.collate import IGNORED
from kava.losses.fused import fused_cross_entropy

SLICE = 1024
"""Tokens whose logits are in memory at once: 0.25 GiB in bfloat16 for a vocabulary of 128,256."""


def sliced_token_losses(
    hidden: Float[Tensor, "N E"],
    weight: Float[Tensor, "V E"],
    labels: Int[Tensor, " N"],
    rows: Float[Tensor, "k E"],
    row_ids: Int[Tensor, " k"],
    slice_length: int = SLICE,
    liger: bool = False,
) -> Float[Tensor, " N"]:
    """Compute the cross-entropy of each token, equal to `cross_entropy(logits.float(), labels, reduction="none")`.

    The gradient of a slice is computed while its logits are in memory, for an upstream gradient of one per token; the backward pass
    only scales it. So there are two matrix multiplications with the head, as usual, and no third one to recompute the logits.

    Args:
        hidden: last-layer states, one row per labelled token.
        weight: weight of the head; frozen.
        labels: the token each row should predict, or `IGNORED`.
        rows: trained rows that replace some rows of the head; k may be 0.
        row_ids: indices of the replaced rows.
        slice_length: tokens per slice.
        liger: use liger-kernel's softmax, which overwrites a slice's logits with their gradient.

    Returns:
        Float32 losses, 0 where the label is ignored, with gradients for `hidden` and `rows`.
    """
    losses: Tensor = _Sliced.apply(hidden, weight, labels, rows, row_ids, slice_length, liger)  # type: ignore[no-untyped-call]
    return losses


class _Sliced(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, rows: Tensor, row_ids: Tensor, slice_length: int, liger: bool
    ) -> Tensor:
        dtype = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else hidden.dtype
        with torch.autocast(hidden.device.type, enabled=False):
            states, head, stand_ins = hidden.to(dtype), weight.to(dtype), rows.to(dtype)
            losses = hidden.new_empty(len(hidden), dtype=torch.promote_types(dtype, torch.float32))
            to_hidden = torch.empty_like(states)
            at_rows = losses.new_empty(len(hidden), len(rows))
            for start in range(0, len(hidden), slice_length):
                part = slice(start, start + slice_length)
                wanted = labels[part]
                counted, target = wanted[:, None] != IGNORED, wanted[:, None].clamp(min=0)
                logits = states[part] @ head.T
                at_ids = states[part] @ stand_ins.T
                logits.index_copy_(1, row_ids, at_ids)
                chosen = logits.gather(1, target).to(losses.dtype)
                losses[part], slope = (fused_cross_entropy if liger else _cross_entropy)(logits, wanted)
                log_partition = losses[part, None] + chosen
                # Not a product: where the label is ignored, `log_partition` is some logit, and the exponential may overflow.
                slope_at_rows = (at_ids - log_partition).exp() - (target == row_ids).to(losses.dtype)
                at_rows[part] = torch.where(counted, slope_at_rows, 0)
                # The replaced rows of the head do not contribute.
                slope.index_fill_(1, row_ids, 0)
                to_hidden[part] = torch.addmm(at_rows[part].to(dtype) @ stand_ins, slope, head) * counted
                del logits, slope
        ctx.save_for_backward(to_hidden, at_rows, states)
        ctx.hidden_dtype, ctx.rows_dtype = hidden.dtype, rows.dtype
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        to_hidden, at_rows, states = ctx.saved_tensors
        scaled = (to_hidden * gradient[:, None]).to(ctx.hidden_dtype)
        to_rows = None
        if ctx.needs_input_grad[3]:
            to_rows = ((at_rows * gradient[:, None]).T @ states.to(at_rows.dtype)).to(ctx.rows_dtype)
        return scaled, None, None, to_rows, None, None, None


def _cross_entropy(logits: Float[Tensor, "n V"], labels: Int[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n V"]]:
    """The cross-entropy of each row in at least float32, 0 where the label is ignored, and its gradient in the dtype of the logits."""
    target, dtype = labels[:, None].clamp(min=0), torch.promote_types(logits.dtype, torch.float32)
    log_probabilities = logits.log_softmax(-1, dtype=dtype)
    losses = (-log_probabilities.gather(1, target)).squeeze(1) * (labels != IGNORED)
    residual = log_probabilities.exp_()
    residual.scatter_add_(1, target, residual.new_full((), -1.0).expand(target.shape))
    return losses, residual.to(logits.dtype)
