"""What lies between a layer's matrix multiplications: the gradients are autograd's, and Triton's kernels compute what plain torch does."""

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.kernels import runs_triton
from helpers.tiny import assert_close
from kava.model import layer_kernels as kernels

needs_triton = pytest.mark.skipif(not runs_triton(), reason="needs Triton, and a GPU or TRITON_INTERPRET=1")
# Shapes whose widths are no powers of two, one of a single token, and one with cos and sin for all rows.
SHAPES = [(2, 5, 9, 3, 16), (1, 1, 4, 2, 8), (3, 4, 6, 2, 32)]


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def _parts(batch: int, tokens: int, query_heads: int, heads: int, width: int) -> dict[str, Tensor]:
    rows = batch * tokens
    names = ("x", "addend", "to_normal", "residual", "to_dropped", "to_active")
    made = {name: _draw(rows, query_heads * width, seed=seed) for seed, name in enumerate(names)}
    angles = _draw(batch, tokens, width // 2, seed=20)
    turns = {"cos": torch.cat([angles.cos()] * 2, -1), "sin": torch.cat([angles.sin()] * 2, -1)}
    wide = {"qkv": _draw(rows, (query_heads + 2 * heads) * width, seed=21), "both": _draw(rows, 2 * query_heads * width, seed=23)}
    return made | turns | wide | {"gain": _draw(query_heads * width, seed=22), "mask": made["x"] < 1}


def test_gradients_of_the_rotation_are_autograds() -> None:
    part = _parts(2, 5, 9, 3, 16)
    rows = part["qkv"].requires_grad_()
    outputs = kernels.rotate(rows, part["cos"], part["sin"], (2, 5), (9, 3))
    assert all(output.is_contiguous() for output in outputs)
    assert torch.equal(outputs[2].transpose(1, 2).reshape(10, -1), rows[:, -48:])
    upstream = [_draw(*output.shape, seed=seed) for seed, output in enumerate(outputs)]
    (expected,) = torch.autograd.grad(outputs, rows, upstream)
    assert_close(kernels.rotate_back(*upstream, part["cos"], part["sin"]), expected, 1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_gradient_of_a_norm_and_what_is_around_it_is_autograds(dropout: float) -> None:
    part = _parts(2, 5, 9, 3, 16)
    x, keep = part["x"].requires_grad_(), 1 / (1 - dropout)
    normal, scale = kernels.norm(x, part["gain"], 1e-5)
    through = part["to_normal"] + (keep * part["mask"] * part["to_dropped"] if dropout else 0)
    (expected,) = torch.autograd.grad(normal, x, through)
    bits = kernels.pack(part["mask"]) if dropout else None
    further = (part["to_dropped"], bits, keep) if dropout else ()
    found = kernels.norm_backward(part["to_normal"], x.detach(), scale.detach(), part["gain"], part["residual"], *further)
    assert_close(found, expected + part["residual"], 1e-6)
    to_heads = kernels.to_heads(part["to_normal"], *(further or (None, None, 1.0)), (2, 5, 9, 16))
    assert_close(to_heads.reshape(10, -1), through, 1e-6)
    assert to_heads.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_a_weight_is_added_in_place(dtype: torch.dtype, device: str) -> None:
    """Also into a part of a larger matrix, and from rows that are a part of longer ones."""
    rows, inputs, whole = _draw(40, 32).to(device, dtype), _draw(40, 24, seed=1).to(device, dtype), _draw(64, 24, seed=2).to(device)
    assert kernels.adds_weight_gradients(rows.device, dtype)
    part = whole[16:32]
    expected, before = part + 0.5 * rows[:, :16].float().T @ inputs.float(), whole.clone()
    assert kernels.add_weight_gradient(part, rows[:, :16], inputs, 0.5) is part
    assert_close(part, expected, 1e-6 if dtype == torch.float32 or device == "cuda" else 1e-2)
    assert torch.equal(whole[:16], before[:16])
    assert torch.equal(whole[32:], before[32:])


def test_a_norm_of_a_sum_is_the_norm_of_what_is_stored() -> None:
    part = {name: value.bfloat16() for name, value in _parts(2, 5, 9, 3, 16).items()}
    total, normal, scale = kernels.add_norm(part["x"], part["addend"], part["gain"], 1e-5)
    assert torch.equal(total, part["x"] + part["addend"])
    assert all(map(torch.equal, (normal, scale), kernels.norm(total, part["gain"], 1e-5)))
    expected = torch.nn.functional.rms_norm(total.float(), total.shape[1:], part["gain"].float(), 1e-5)
    assert_close(normal.float(), expected, 5e-3)


def test_gradients_of_the_gated_activation_are_autograds() -> None:
    part = _parts(2, 5, 9, 3, 16)
    both = part["both"].requires_grad_()
    active = kernels.gated(both)
    assert_close(active, torch.nn.functional.silu(both[:, :144]) * both[:, 144:], 1e-6)
    (expected,) = torch.autograd.grad(active, both, part["to_active"])
    assert_close(kernels.gated_backward(part["to_active"], both.detach()), expected, 1e-6)


@pytest.mark.parametrize("shape", [(3, 8), (5, 24)])
def test_a_packed_mask_holds_every_element_in_one_bit(shape: tuple[int, int]) -> None:
    mask = _draw(*shape) > 0
    bits = kernels.pack(mask)
    assert len(bits) == mask.numel() // 8
    unpacked = [bool(bits[i // 8] >> (i % 8) & 1) for i in range(mask.numel())]
    assert unpacked == mask.flatten().tolist()


def _apart(argument: Any) -> Any:
    """A tensor on the device of the kernels, whose elements do not follow each other in memory."""
    if not isinstance(argument, Tensor):
        return argument
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.stack([argument, torch.zeros_like(argument)], -1).to(device)[..., 0]


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_triton_kernel_computes_what_plain_torch_does(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from kava.model import triton_kernels

    batch, tokens, query_heads, _, width = shape
    part = {name: value if name == "mask" else value.to(dtype) for name, value in _parts(*shape).items()}
    upstream = [_draw(batch, heads, tokens + 3, width).to(dtype)[:, :, 3:] for heads in (query_heads, shape[3], shape[3])]
    scale, bits = _draw(batch * tokens, 1).abs(), kernels.pack(part["mask"])
    # Rows of more than one block of a kernel, the last of them whole or with one element.
    wide = [_draw(3, 2 * count).to(dtype) for count in (1025, 2048)]
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("rotate", (part["qkv"], part["cos"], part["sin"], (batch, tokens), shape[2:4])),
        ("rotate", (part["qkv"], part["cos"][:1], part["sin"][:1], (batch, tokens), shape[2:4])),
        ("rotate_back", (*upstream, part["cos"], part["sin"])),
        ("add_norm", (part["x"], part["addend"], part["gain"], 1e-5)),
        ("norm_backward", (part["to_normal"], part["x"], scale, part["gain"], part["residual"], None, None, 1.0)),
        ("norm_backward", (part["to_normal"], part["x"], scale, part["gain"], part["residual"], part["to_dropped"], bits, 1.25)),
        ("to_heads", (part["to_normal"], None, None, 1.0, (batch, tokens, query_heads, width))),
        ("to_heads", (part["to_normal"], part["to_dropped"], bits, 1.25, (batch, tokens, query_heads, width))),
        *(("gated", (both,)) for both in (part["both"], *wide)),
        *(("gated_backward", (both[:, : both.shape[1] // 2], both)) for both in (part["both"], *wide)),
        ("pack", (part["mask"],)),
    ]
    for name, arguments in calls:
        expected = getattr(kernels, name)(*arguments)
        found = getattr(triton_kernels, name)(*map(_apart, arguments))
        pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
        for one, other in pairs:
            # Triton's interpreter cuts what a GPU rounds.
            assert_close(one.cpu().float(), other.float(), 1e-6 if dtype == torch.float32 else 2e-2, name)
