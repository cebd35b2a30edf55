# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Triton kernels of an adapted decoder layer: what lies between its matrix multiplications, each in one pass over memory.

`kava.model.layer_kernels` has the same functions in plain torch, says what each computes, and chooses. Arithmetic is float32.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _turn(
    source, source_head, target, target_head, cos, sin, angles,
    heads: tl.constexpr, half: tl.constexpr, padded: tl.constexpr, back: tl.constexpr,
):  # fmt: skip
    """Rotate the heads of one token from `source` to `target`, or back; its cosines and sines begin at `angles`."""
    head, place = tl.arange(0, padded)[:, None], tl.arange(0, half)[None, :]
    cos += angles
    sin += angles
    real = (head < heads) & (place < half)
    here = source + head * source_head + place
    first = tl.load(here, mask=real, other=0).to(tl.float32)
    second = tl.load(here + half, mask=real, other=0).to(tl.float32)
    cos_1, cos_2 = tl.load(cos + place).to(tl.float32), tl.load(cos + half + place).to(tl.float32)
    sin_1, sin_2 = tl.load(sin + place).to(tl.float32), tl.load(sin + half + place).to(tl.float32)
    there = target + head * target_head + place
    if back:
        tl.store(there, first * cos_1 + second * sin_2, mask=real)
        tl.store(there + half, second * cos_2 - first * sin_1, mask=real)
    else:
        tl.store(there, first * cos_1 - second * sin_1, mask=real)
        tl.store(there + half, second * cos_2 + first * sin_2, mask=real)


@triton.jit
def _move(source, source_head, target, target_head, heads: tl.constexpr, width: tl.constexpr, padded: tl.constexpr):
    """Copy the heads of one token."""
    head, place = tl.arange(0, padded)[:, None], tl.arange(0, width)[None, :]
    moved = tl.load(source + head * source_head + place, mask=head < heads, other=0)
    tl.store(target + head * target_head + place, moved, mask=head < heads)


@triton.jit(do_not_specialize=["tokens"])
def _rotate(
    rows, to_query, to_key, to_value, cos, sin, tokens, cos_batch,
    query_heads: tl.constexpr, key_heads: tl.constexpr, half: tl.constexpr, padded_query: tl.constexpr, padded_key: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // tokens, row % tokens
    width = 2 * half
    angles = batch * cos_batch + token * width
    rows += row * (query_heads + 2 * key_heads) * width
    to_query += (batch * query_heads * tokens + token) * width
    _turn(rows, width, to_query, tokens * width, cos, sin, angles, query_heads, half, padded_query, False)
    rows += query_heads * width
    of_key = (batch * key_heads * tokens + token) * width
    _turn(rows, width, to_key + of_key, tokens * width, cos, sin, angles, key_heads, half, padded_key, False)
    _move(rows + key_heads * width, width, to_value + of_key, tokens * width, key_heads, 2 * half, padded_key)


@triton.jit(do_not_specialize=["tokens"])
def _rotate_back(
    query, key, value, rows, cos, sin, tokens, cos_batch,
    query_batch, query_head, query_token, key_batch, key_head, key_token, value_batch, value_head, value_token,
    query_heads: tl.constexpr, key_heads: tl.constexpr, half: tl.constexpr, padded_query: tl.constexpr, padded_key: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // tokens, row % tokens
    width = 2 * half
    angles = batch * cos_batch + token * width
    rows += row * (query_heads + 2 * key_heads) * width
    query += batch * query_batch + token * query_token
    _turn(query, query_head, rows, width, cos, sin, angles, query_heads, half, padded_query, True)
    rows += query_heads * width
    key += batch * key_batch + token * key_token
    _turn(key, key_head, rows, width, cos, sin, angles, key_heads, half, padded_key, True)
    _move(value + batch * value_batch + token * value_token, value_head, rows + key_heads * width, width, key_heads, 2 * half, padded_key)


@triton.jit
def _add_norm(x, addend, gain, total, normal, scale, epsilon, width, padded: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, padded)
    real = place < width
    at = row * width + place
    added = tl.load(x + at, mask=real, other=0).to(tl.float32) + tl.load(addend + at, mask=real, other=0).to(tl.float32)
    # The norm of what is stored, which the backward pass reads.
    added = added.to(total.dtype.element_ty)
    tl.store(total + at, added, mask=real)
    wide = added.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide) / width + epsilon)
    tl.store(scale + row, inverse)
    tl.store(normal + at, wide * inverse * tl.load(gain + place, mask=real, other=0).to(tl.float32), mask=real)


@triton.jit
def _with_dropped(through, to_dropped, bits, keep, at, real, dropout: tl.constexpr):
    """A gradient, and where there is `dropout` that of the input after it, at the elements `at`."""
    gradient = tl.load(through + at, mask=real, other=0).to(tl.float32)
    if dropout:
        kept = ((tl.load(bits + at // 8, mask=real, other=0).to(tl.int32) >> (at % 8).to(tl.int32)) & 1) != 0
        gradient += tl.where(kept, keep * tl.load(to_dropped + at, mask=real, other=0).to(tl.float32), 0.0)
    return gradient


@triton.jit
def _norm_backward(
    to_normal, to_dropped, bits, keep, x, scale, gain, residual, to_x, width, dropout: tl.constexpr, padded: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, padded)
    real = place < width
    at = row * width + place
    gradient = _with_dropped(to_normal, to_dropped, bits, keep, at, real, dropout)
    inverse = tl.load(scale + row)
    normal = inverse * tl.load(x + at, mask=real, other=0).to(tl.float32)
    gradient *= tl.load(gain + place, mask=real, other=0).to(tl.float32)
    gradient = inverse * (gradient - normal * (tl.sum(gradient * normal) / width))
    gradient += tl.load(residual + at, mask=real, other=0).to(tl.float32)
    tl.store(to_x + at, gradient, mask=real)


@triton.jit(do_not_specialize=["tokens"])
def _to_heads(
    through, to_dropped, bits, keep, target, tokens, width,
    head_width: tl.constexpr, dropout: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // tokens, row % tokens
    place = tl.arange(0, padded)
    real = place < width
    at = row * width + place
    gradient = _with_dropped(through, to_dropped, bits, keep, at, real, dropout)
    there = batch * tokens * width + (place // head_width) * tokens * head_width + token * head_width + place % head_width
    tl.store(target + there, gradient, mask=real)


@triton.jit
def _gated(both, active, width, blocks: tl.constexpr, block: tl.constexpr):
    row = (tl.program_id(0) // blocks).to(tl.int64)
    place = tl.program_id(0) % blocks * block + tl.arange(0, block)
    real = place < width
    both += 2 * row * width
    opening = tl.load(both + place, mask=real, other=0).to(tl.float32)
    raised = tl.load(both + width + place, mask=real, other=0).to(tl.float32)
    tl.store(active + row * width + place, opening * tl.sigmoid(opening) * raised, mask=real)


@triton.jit
def _gated_backward(to_active, both, to_both, width, blocks: tl.constexpr, block: tl.constexpr):
    row = (tl.program_id(0) // blocks).to(tl.int64)
    place = tl.program_id(0) % blocks * block + tl.arange(0, block)
    real = place < width
    both += 2 * row * width
    to_both += 2 * row * width
    gradient = tl.load(to_active + row * width + place, mask=real, other=0).to(tl.float32)
    opening = tl.load(both + place, mask=real, other=0).to(tl.float32)
    raised = tl.load(both + width + place, mask=real, other=0).to(tl.float32)
    sigmoid = tl.sigmoid(opening)
    tl.store(to_both + width + place, gradient * opening * sigmoid, mask=real)
    tl.store(to_both + place, gradient * raised * sigmoid * (1 + opening * (1 - sigmoid)), mask=real)


@triton.jit
def _pack(eights, bits, count, block: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    real = at < count
    # Eight bytes of 0 or 1, the first the lowest: the product moves byte i to bit 56 + i.
    moved = tl.load(eights + at, mask=real, other=0) * 0x0102040810204080
    tl.store(bits + at, ((moved >> 56) & 255).to(tl.uint8), mask=real)


_BLOCK = 1024
_Wrapper = TypeVar("_Wrapper", bound=Callable[..., Any])


def _contiguous(function: _Wrapper) -> _Wrapper:
    """Give a function contiguous tensors: kernels count elements through all rows."""

    @wraps(function)
    def run(*arguments: Any) -> Any:
        return function(*(part.contiguous() if isinstance(part, Tensor) else part for part in arguments))

    return cast(_Wrapper, run)


@_contiguous
def rotate(rows: Tensor, cos: Tensor, sin: Tensor, shape: tuple[int, int], heads: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """`kava.model.layer_kernels.rotate`."""
    (batch, tokens), width = shape, cos.shape[-1]
    query, key, value = (rows.new_empty(batch, count, tokens, width) for count in (*heads, heads[1]))
    _rotate[(len(rows),)](
        rows, query, key, value, cos, sin, tokens, _batch_distance(cos), *heads, width // 2, *map(triton.next_power_of_2, heads)
    )
    return query, key, value


def rotate_back(query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`kava.model.layer_kernels.rotate_back`."""
    batch, query_heads, tokens, width = query.shape
    heads = query_heads, key.shape[1]
    query, key, value = (part if part.stride(3) == 1 else part.contiguous() for part in (query, key, value))
    cos, sin = cos.contiguous(), sin.contiguous()
    rows = query.new_empty(batch * tokens, (heads[0] + 2 * heads[1]) * width)
    distances = [distance for part in (query, key, value) for distance in part.stride()[:3]]
    _rotate_back[(batch * tokens,)](
        query, key, value, rows, cos, sin, tokens, _batch_distance(cos), *distances, *heads, width // 2,
        *map(triton.next_power_of_2, heads),
    )  # fmt: skip
    return rows


@_contiguous
def add_norm(x: Tensor, addend: Tensor, gain: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """`kava.model.layer_kernels.add_norm`."""
    total, normal, width = torch.empty_like(x), torch.empty_like(x), x.shape[1]
    scale = x.new_empty(len(x), 1, dtype=torch.float32)
    _add_norm[(len(x),)](x, addend, gain, total, normal, scale, epsilon, width, triton.next_power_of_2(width))
    return total, normal, scale


@_contiguous
def norm_backward(
    to_normal: Tensor,
    x: Tensor,
    scale: Tensor,
    gain: Tensor,
    residual: Tensor,
    to_dropped: Tensor | None = None,
    bits: Tensor | None = None,
    keep: float = 1.0,
) -> Tensor:
    """`kava.model.layer_kernels.norm_backward`."""
    to_x, width = torch.empty_like(x), x.shape[1]
    dropped, kept = (to_normal, to_normal) if bits is None else (to_dropped, bits)
    _norm_backward[(len(x),)](
        to_normal, dropped, kept, keep, x, scale, gain, residual, to_x, width, bits is not None, triton.next_power_of_2(width)
    )
    return to_x


@_contiguous
def to_heads(through: Tensor, to_dropped: Tensor | None, bits: Tensor | None, keep: float, shape: tuple[int, int, int, int]) -> Tensor:
    """`kava.model.layer_kernels.to_heads`."""
    batch, tokens, heads, head_width = shape
    target = through.new_empty(batch, heads, tokens, head_width)
    dropped, kept = (through, through) if bits is None else (to_dropped, bits)
    width = heads * head_width
    _to_heads[(len(through),)](
        through, dropped, kept, keep, target, tokens, width, head_width, bits is not None, triton.next_power_of_2(width)
    )
    return target.transpose(1, 2)


@_contiguous
def gated(both: Tensor) -> Tensor:
    """`kava.model.layer_kernels.gated`."""
    rows, width = len(both), both.shape[1] // 2
    active, blocks = both.new_empty(rows, width), triton.cdiv(width, _BLOCK)
    _gated[(rows * blocks,)](both, active, width, blocks, _BLOCK)
    return active


@_contiguous
def gated_backward(to_active: Tensor, both: Tensor) -> Tensor:
    """`kava.model.layer_kernels.gated_backward`."""
    (rows, width), to_both = to_active.shape, torch.empty_like(both)
    blocks = triton.cdiv(width, _BLOCK)
    _gated_backward[(rows * blocks,)](to_active, both, to_both, width, blocks, _BLOCK)
    return to_both


@_contiguous
def pack(mask: Tensor) -> Tensor:
    """`kava.model.layer_kernels.pack`."""
    eights = mask.view(torch.uint8).view(torch.int64)
    bits = mask.new_empty(eights.numel(), dtype=torch.uint8)
    _pack[(triton.cdiv(eights.numel(), _BLOCK),)](eights, bits, eights.numel(), _BLOCK)
    return bits


def _batch_distance(cos: Tensor) -> int:
    return cos.stride(0) if cos.shape[0] > 1 else 0
