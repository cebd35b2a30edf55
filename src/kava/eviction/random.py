"""`random`: keep M entries drawn by a hash of the example, layer, head and position."""

import torch
from jaxtyping import Float
from torch import Tensor

from kava.eviction.trace import Options, Trace

MASK32 = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers, held in int64 (source: github.com/skeeto/hash-prospector, issue 19).

    Both multipliers are below 2^31, so no product overflows and every device computes the same bits.
    """
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & MASK32
    x = ((x ^ (x >> 15)) * 0x735A2D97) & MASK32
    return x ^ (x >> 15)


def random(trace: Trace, options: Options) -> Float[Tensor, "L B H C"]:
    """Score uniform in [0, 1): a function of (seed, example_seed, layer, head, position) and nothing else.

    No generator state is involved, so an example keeps the same entries in every batch, epoch and process, on every device.
    """
    layers, batch, heads, length = trace.importance.shape
    device = trace.mask.device
    examples = trace.example_seed.to(torch.int64)
    words = (
        # Filled on the device: a copy from the host cannot be part of a CUDA graph.
        torch.full((1, 1, 1, 1), options.seed & MASK32, device=device),
        (examples & MASK32).view(1, batch, 1, 1),
        (examples >> 32 & MASK32).view(1, batch, 1, 1),
        torch.arange(layers, device=device).view(layers, 1, 1, 1),
        torch.arange(heads, device=device).view(1, 1, heads, 1),
        torch.arange(length, device=device).view(1, 1, 1, length),
    )
    state = torch.ones((), dtype=torch.int64, device=device)
    for word in words:
        state = _mix(state ^ word)
    # float32 holds 24 bits exactly.
    return trace.hide_padding((state >> 8).float() / 2**24)
