"""Cross-entropy from hidden states with a frozen head, one slice of tokens at a time: the N x V logits are never in memory at once."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from kava.data.collate import IGNORED

SLICE = 1024
"""Tokens whose logits are in memory at once: 0.25 GiB in bfloat16 for a vocabulary of 128,256."""


def sliced_token_losses(
    hidden: Float[Tensor, "N E"],
    weight: Float[Tensor, "V E"],
    labels: Int[Tensor, " N"],
    rows: Float[Tensor, "k E"],
    row_ids: Int[Tensor, " k"],
    slice_length: int = SLICE,
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

    Returns:
        Float32 losses, 0 where the label is ignored, with gradients for `hidden` and `rows`.
    """
    losses: Tensor = _Sliced.apply(hidden, weight, labels, rows, row_ids, slice_length)  # type: ignore[no-untyped-call]
    return losses


class _Sliced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, rows: Tensor, row_ids: Tensor, slice_length: int) -> Tensor:
        dtype = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else hidden.dtype
        with torch.autocast(hidden.device.type, enabled=False):
            states, head, stand_ins = hidden.to(dtype), weight.to(dtype), rows.to(dtype)
            losses = hidden.new_empty(len(hidden), dtype=torch.promote_types(dtype, torch.float32))
            to_hidden = torch.empty_like(states)
            at_rows = losses.new_empty(len(hidden), len(rows))
            for start in range(0, len(hidden), slice_length):
                part = slice(start, start + slice_length)
                logits = states[part] @ head.T
                logits.index_copy_(1, row_ids, states[part] @ stand_ins.T)
                log_probabilities = logits.log_softmax(-1, dtype=losses.dtype)
                del logits
                counted = labels[part, None] != IGNORED
                target = labels[part, None].clamp(min=0)
                losses[part] = (-log_probabilities.gather(1, target) * counted)[:, 0]
                residual = log_probabilities.exp_()
                residual.scatter_add_(1, target, residual.new_full((), -1.0).expand(target.shape))
                at_rows[part] = residual[:, row_ids] * counted
                # The replaced rows of the head do not contribute.
                residual.index_fill_(1, row_ids, 0)
                slope = residual.to(dtype)
                to_hidden[part] = torch.addmm(at_rows[part].to(dtype) @ stand_ins, slope, head) * counted
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
        return scaled, None, None, to_rows, None, None
