"""Attention over short sequences on a CPU, as two batched matrix multiplications.

torch's flash kernel for CPUs saves memory that short sequences do not need and pays for it in its backward pass, and
transformers copies grouped keys and values for it. Here the query heads of a group are rows of one multiplication with their KV head.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from kava.cache.masks import additive
from kava.runtime.cpu_matmul import batched_matmul
from kava.runtime.device import runs_as_on_gpu

# Most scores per head (queries x keys); longer sequences use the flash kernel, whose memory does not grow with this number.
MAX_SCORES = 128 * 128


def is_short(query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]) -> bool:
    """Whether `attend_short` can take this call: on a CPU, few scores, a mask as SDPA's or none needed, nothing extra.

    Inputs are float32 or bfloat16. float32 under autocast is left to SDPA, which rounds it, and so are compiled passes, because
    torch's compiler supports SDPA.
    """
    queries, keys = query.shape[2], key.shape[2]
    masked = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.dim() == 4 and mask.shape[1] == 1
    plain = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
    return (
        not torch.compiler.is_compiling()
        and query.device.type == "cpu"
        and query.dtype == key.dtype in (plain, torch.bfloat16)
        and queries * keys <= MAX_SCORES
        and (masked or (mask is None and queries == 1))
        and not runs_as_on_gpu()
        and not kwargs.get("dropout")
        and all(kwargs.get(extra) is None for extra in ("position_bias", "cache", "softcap", "s_aux"))
    )


def attend_short(
    query: Float[Tensor, "B Nh n D"],
    key: Float[Tensor, "B H S D"],
    value: Float[Tensor, "B H S Dv"],
    mask: Bool[Tensor, "#B 1 n S"] | None,
    scaling: float | None,
) -> Float[Tensor, "B n Nh Dv"]:
    """softmax(scaling q k^T) v over the entries that `mask` shows; a row that sees nothing gets some finite mixture.

    bfloat16 inputs are computed in float32, and the result is bfloat16.
    """
    batch, query_heads, queries, width = query.shape
    heads, entries = key.shape[1:3]
    bias = None if mask is None else additive(mask, torch.float32, torch.finfo(torch.float32).min)
    rows = query.reshape(batch * heads, -1, width)
    mixed: Tensor = _Attend.apply(  # type: ignore[no-untyped-call]
        rows, key.reshape(batch * heads, entries, width), value.reshape(batch * heads, entries, -1), bias,
        width**-0.5 if scaling is None else scaling, (batch, query_heads, queries, entries),
    )  # fmt: skip
    return mixed.view(batch, query_heads, queries, -1).transpose(1, 2)


class _Attend(torch.autograd.Function):
    """Attention of [B H, G n, D] rows, whose weights are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, shape: tuple[int, ...]) -> Tensor:
        ctx.scale = scale
        with _full_precision():
            wide_rows, wide_key, wide_value = _wide(rows, key, value)
            weights = _weights(wide_rows, wide_key, bias, scale, shape)
            ctx.save_for_backward(rows, key, value, weights)
            return batched_matmul(weights, wide_value).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *saved, weights = ctx.saved_tensors
        with _full_precision():
            rows, key, value, gradient = _wide(*saved, gradient)
            to_value = batched_matmul(weights.transpose(1, 2), gradient)
            to_weights = batched_matmul(gradient, value.transpose(1, 2))
            to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
            to_rows, to_key = batched_matmul(to_scores, key, ctx.scale), batched_matmul(to_scores.transpose(1, 2), rows, ctx.scale)
        narrow = (part.to(source.dtype) for part, source in zip((to_rows, to_key, to_value), saved, strict=True))
        return *narrow, None, None, None


def _full_precision() -> AbstractContextManager[object]:
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()


def _wide(*parts: Tensor) -> tuple[Tensor, ...]:
    """Convert tensors in half precision to float32; others are unchanged."""
    return tuple(part.float() if part.dtype in (torch.bfloat16, torch.float16) else part for part in parts)


def _weights(rows: Tensor, key: Tensor, bias: Tensor | None, scale: float, shape: tuple[int, ...]) -> Tensor:
    scores = batched_matmul(rows, key.transpose(1, 2), scale)
    if bias is not None:
        scores.view(shape).add_(bias)
    return scores.softmax(-1)
