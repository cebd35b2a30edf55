"""What lies between the matrix multiplications of an adapted decoder layer: Triton kernels on a GPU, the same in plain torch elsewhere.

Rows are tokens: N = B n. The plain forms are those that tests compare the kernels with. One matrix multiplication is here too, because
torch has it for a GPU alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from kava.runtime.cpu_matmul import transposed_matmul

HAS_TRITON = find_spec("triton") is not None
if HAS_TRITON:
    from kava.model import triton_kernels


@contextmanager
def replaced(functions: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Other functions in place of those of this module, for code that counts on a CPU what a GPU would run and store."""
    before = {name: globals()[name] for name in functions}
    globals().update(functions)
    try:
        yield
    finally:
        globals().update(before)


def outputs_only() -> dict[str, Callable[..., Any]]:
    """Functions for `replaced` that allocate what the kernels return, and nothing else."""

    def norm_outputs(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), x.new_empty(len(x), 1, dtype=torch.float32)

    def by_head(rows: Tensor, shape: tuple[int, ...], count: int, width: int) -> Tensor:
        return rows.new_empty(shape[0], count, shape[1], width)

    def by_row(*heads: Tensor) -> Tensor:
        return heads[0].new_empty(heads[0].shape[0] * heads[0].shape[2], sum(part.shape[1] * part.shape[3] for part in heads))

    return {
        "norm": norm_outputs,
        "add_norm": lambda x, *_: (torch.empty_like(x), *norm_outputs(x)),
        "rotate": lambda rows, cos, sin, shape, heads: tuple(by_head(rows, shape, count, cos.shape[-1]) for count in (*heads, heads[1])),
        "rotate_back": lambda *heads: by_row(*heads[:3]),
        "norm_backward": lambda to_normal, *_: torch.empty_like(to_normal),
        "to_heads": lambda through, to_dropped, bits, keep, shape: by_head(through, shape, shape[2], shape[3]).transpose(1, 2),
        "gated": lambda both: both.new_empty(len(both), both.shape[1] // 2),
        "gated_backward": lambda to_active, both: torch.empty_like(both),
        "pack": lambda mask: mask.new_empty(mask.numel() // 8, dtype=torch.uint8),
        "add_weight_gradient": lambda total, *_: total,
    }


def norm(x: Float[Tensor, "N E"], gain: Float[Tensor, " E"], epsilon: float) -> tuple[Float[Tensor, "N E"], Float[Tensor, "N 1"]]:
    """x / rms(x) * gain, and 1 / rms(x) in float32."""
    if x.is_cuda:
        normal, scale = torch.ops.aten._fused_rms_norm(x, list(gain.shape), gain, epsilon)
        return normal, scale
    scale = (x.float().pow(2).mean(-1, keepdim=True) + epsilon).rsqrt()
    return (x.float() * scale * gain.float()).to(x.dtype), scale


def add_norm(
    x: Float[Tensor, "N E"], addend: Float[Tensor, "N E"], gain: Float[Tensor, " E"], epsilon: float
) -> tuple[Float[Tensor, "N E"], Float[Tensor, "N E"], Float[Tensor, "N 1"]]:
    """x + addend, and what `norm` gives for it."""
    if x.is_cuda:
        return triton_kernels.add_norm(x, addend, gain, epsilon)
    total = x + addend
    return total, *norm(total, gain, epsilon)


def rotate(
    rows: Float[Tensor, "N qkv"],
    cos: Float[Tensor, "#B n D"],
    sin: Float[Tensor, "#B n D"],
    shape: tuple[int, int],
    heads: tuple[int, int],
) -> tuple[Float[Tensor, "B Nh n D"], Float[Tensor, "B H n D"], Float[Tensor, "B H n D"]]:
    """Queries and keys with their rotary position embedding, and values, by head, from rows that hold them one behind the other.

    x cos + [-x_2, x_1] sin with x_1 and x_2 the halves of a head; `shape` is (B, n), `heads` (Nh, H).
    """
    if rows.is_cuda:
        return triton_kernels.rotate(rows, cos, sin, shape, heads)
    cos, sin = cos[:, None].float(), sin[:, None].float()
    query, key, value = rows.view(*shape, -1, cos.shape[-1]).transpose(1, 2).split([*heads, heads[1]], 1)
    turned = [(part.float() * cos + _turned(part.float()) * sin).to(rows.dtype).contiguous() for part in (query, key)]
    return turned[0], turned[1], value.contiguous()


def rotate_back(
    query: Float[Tensor, "B Nh n D"], key: Float[Tensor, "B H n D"], value: Float[Tensor, "B H n D"],
    cos: Float[Tensor, "#B n D"], sin: Float[Tensor, "#B n D"],
) -> Float[Tensor, "N qkv"]:  # fmt: skip
    """The gradient of the rows that `rotate` reads from those of what it returns."""
    if query.is_cuda:
        return triton_kernels.rotate_back(query, key, value, cos, sin)
    cos, sin = cos[:, None].float(), sin[:, None].float()
    turned = [(part.float() * cos - _turned(part.float() * sin)).to(part.dtype) for part in (query, key)]
    return torch.cat([*turned, value], 1).transpose(1, 2).reshape(query.shape[0] * query.shape[2], -1)


def norm_backward(
    to_normal: Float[Tensor, "N E"], x: Float[Tensor, "N E"], scale: Float[Tensor, "N 1"], gain: Float[Tensor, " E"],
    residual: Float[Tensor, "N E"], to_dropped: Float[Tensor, "N E"] | None = None, bits: UInt8[Tensor, " bytes"] | None = None,
    keep: float = 1.0,
) -> Float[Tensor, "N E"]:  # fmt: skip
    """The gradient of x, which a residual connection and an RMS norm read: `residual` plus the gradient through the norm.

    Args:
        to_normal: gradient of the normalised rows.
        x, scale, gain: input of the norm, the inverse of its root mean square, and the norm's weight.
        residual: gradient of x through the residual connection.
        to_dropped: a further gradient of the normalised rows, through dropout, which multiplies by `keep`.
        bits: the dropout mask from `pack`.
    """
    if x.is_cuda:
        return triton_kernels.norm_backward(to_normal, x, scale, gain, residual, to_dropped, bits, keep)
    gradient = _with_dropped(to_normal, to_dropped, bits, keep) * gain.float()
    normal = x.float() * scale
    return (scale * (gradient - normal * (gradient * normal).mean(-1, keepdim=True)) + residual.float()).to(x.dtype)


def to_heads(
    through: Float[Tensor, "N E"], to_dropped: Float[Tensor, "N E"] | None, bits: UInt8[Tensor, " bytes"] | None, keep: float,
    shape: tuple[int, int, int, int],
) -> Float[Tensor, "B n Nh D"]:  # fmt: skip
    """The gradient of the attention's output, stored by head: `through` plus a gradient through dropout; `shape` is the output's."""
    if through.is_cuda:
        return triton_kernels.to_heads(through, to_dropped, bits, keep, shape)
    gradient = _with_dropped(through, to_dropped, bits, keep).to(through.dtype)
    return gradient.view(shape).transpose(1, 2).contiguous().transpose(1, 2)


def gated(both: Float[Tensor, "N both"]) -> Float[Tensor, "N F"]:
    """silu(gate) up; a row of `both` is gate, then up."""
    if both.is_cuda:
        return triton_kernels.gated(both)
    gate, up = both.float().chunk(2, -1)
    return (torch.nn.functional.silu(gate) * up).to(both.dtype)


def gated_backward(to_active: Float[Tensor, "N F"], both: Float[Tensor, "N both"]) -> Float[Tensor, "N both"]:
    """The gradient of `both`."""
    if both.is_cuda:
        return triton_kernels.gated_backward(to_active, both)
    gate, up = both.float().chunk(2, -1)
    gradient, sigmoid = to_active.float(), gate.sigmoid()
    return torch.cat([gradient * up * sigmoid * (1 + gate * (1 - sigmoid)), gradient * gate * sigmoid], -1).to(both.dtype)


def pack(mask: Bool[Tensor, "N E"]) -> UInt8[Tensor, " bytes"]:
    """A mask in an eighth of its memory: element i, counted through all rows, is bit i % 8 of byte i // 8. E is a multiple of 8."""
    if mask.is_cuda:
        return triton_kernels.pack(mask)
    return (mask.reshape(-1, 8) * (1 << torch.arange(8))).sum(-1).to(torch.uint8)


def add_weight_gradient(total: Float[Tensor, "R E"], rows: Float[Tensor, "N R"], inputs: Float[Tensor, "N E"], scale: float) -> Tensor:
    """total += scale rows^T inputs, in place; on a GPU without rounding to half precision in between. Returns `total`."""
    if rows.is_cuda:
        if rows.dtype == total.dtype:
            return total.addmm_(rows.T, inputs, alpha=scale)
        added: Tensor = torch.ops.aten.addmm.dtype_out(total, rows.T, inputs, total.dtype, beta=1, alpha=scale, out=total)
        return added
    return total.add_(transposed_matmul(rows, inputs), alpha=scale)


@cache
def adds_weight_gradients(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `add_weight_gradient` of rows in this dtype works on this device; on a GPU tried on few numbers, which waits for it once.

    Versions of torch differ in the dtypes that they multiply into float32.
    """
    if device.type != "cuda":
        return True
    # A part of longer rows, as they are those of one of several layers.
    total, rows = torch.ones(16, 16, device=device), torch.ones(8, 32, device=device, dtype=dtype)[:, 16:]
    try:
        return bool((add_weight_gradient(total, rows, rows, 0.5) == 5).all())
    except torch.OutOfMemoryError:
        raise  # says nothing about the dtypes, and this answer is kept
    except (RuntimeError, AttributeError):
        return False


def _turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def _with_dropped(gradient: Tensor, to_dropped: Tensor | None, bits: Tensor | None, keep: float) -> Tensor:
    gradient = gradient.float()
    if to_dropped is None or bits is None:
        return gradient
    mask = (bits[:, None] >> torch.arange(8)) & 1
    return gradient + keep * torch.where(mask.view_as(gradient) > 0, to_dropped.float(), 0.0)
