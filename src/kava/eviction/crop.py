"""`crop`: keep the first M entries."""

import torch
from jaxtyping import Float
from torch import Tensor

from kava.eviction.trace import Options, Trace


def crop(trace: Trace, options: Options) -> Float[Tensor, "L B H C"]:
    """Score = -position."""
    positions = torch.arange(trace.mask.shape[1], device=trace.mask.device)
    return trace.by_position(-positions[None].float())
