"""Matrix multiplication in float32 on a CPU, with the faster of torch's two libraries.

torch uses MKL, which runs its AVX-512 code on Intel processors only. oneDNN, which torch also includes, runs AVX-512 code on all: on a
fifth-generation AMD EPYC it is twice as fast (docs/benchmarks.md). torch uses oneDNN for half precision, and for float32 only in an
operation for its own compiler, and in batched products where bfloat16 may be used inside; without the instructions for that (AMX) oneDNN
calculates those in float32 as well.
"""

from collections.abc import Mapping
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

MIN_MULTIPLICATIONS = 2**20
"""Below this size, calling oneDNN takes longer than multiplying with MKL."""
MIN_BATCHED_MULTIPLICATIONS = 2**23
"""The same for batched products."""
# What oneDNN may do is a setting of the whole process.
_permission = Lock()


@cache
def onednn_is_faster() -> bool:
    """Whether this machine has AVX-512 that MKL does not use."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    about = _capabilities()
    return bool(about.get("avx512_f")) and str(about.get("cpu_name", "Intel")).startswith("AMD")


@cache
def has_no_amx() -> bool:
    """Whether oneDNN calculates in float32 where it may use bfloat16."""
    return not _capabilities().get("amx_bf16", True)


def _capabilities() -> Mapping[str, Any]:
    """What the processor can do, as torch names it; empty where torch does not."""
    asked = getattr(torch.cpu, "get_capabilities", dict)
    about: Mapping[str, Any] = asked()
    return about


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, for use inside autograd functions: it has no gradient of its own."""
    if _by_onednn(left, right):
        return _onednn(left, right.T, None)
    return left @ right


def transposed_matmul(left: Tensor, right: Tensor) -> Tensor:
    """left^T @ right: a weight's gradient."""
    if not _by_onednn(left.T, right):
        return left.T @ right
    # oneDNN copies its first argument row by row, so the narrower one goes first.
    return _onednn(left.T, right.T, None) if left.shape[1] <= right.shape[1] else _onednn(right.T, left.T, None).T


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows @ weight^T + bias, for use inside autograd functions: it has no gradient of its own."""
    if _by_onednn(rows, weight.T):
        return _onednn(rows, weight, bias)
    return nn.functional.linear(rows, weight, bias)


def add_matmul_(total: Tensor, left: Tensor, right: Tensor, factor: float = 1.0) -> Tensor:
    """total += factor * left @ right, in place."""
    if _by_onednn(left, right):
        return total.add_(_onednn(left, right.T, None), alpha=factor)
    return total.addmm_(left, right, alpha=factor)


def batched_matmul(left: Tensor, right: Tensor, factor: float = 1.0) -> Tensor:
    """factor * left @ right of matrices in batches, for use inside autograd functions: it has no gradient of its own."""
    total = left.new_empty(())
    if not _batched_by_onednn(left, right):
        return torch.baddbmm(total, left, right, beta=0, alpha=factor)
    onednn: Any = torch.backends.mkldnn
    allowed = onednn.matmul
    with _permission:
        before, allowed.fp32_precision = allowed.fp32_precision, "bf16"
        try:
            return torch.baddbmm(total, left, right, beta=0, alpha=factor)
        finally:
            allowed.fp32_precision = before


def _onednn(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    made: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return made


def _by_onednn(left: Tensor, right: Tensor) -> bool:
    return (
        # No fake tensors, which stand for tensors on a GPU, and no DTensors, which are sharded over processes.
        type(left) in (Tensor, nn.Parameter)
        and left.device.type == "cpu"
        and left.dtype == right.dtype == torch.float32
        and len(left) * right.numel() >= MIN_MULTIPLICATIONS
        and not torch.is_autocast_enabled("cpu")
        and onednn_is_faster()
    )


def _batched_by_onednn(left: Tensor, right: Tensor) -> bool:
    return (
        left.numel() * right.shape[-1] >= MIN_BATCHED_MULTIPLICATIONS
        and left.dtype == right.dtype == torch.float32
        and onednn_is_faster()
        and has_no_amx()
    )
