"""`uniform`: keep M entries spread evenly over the trace."""

import torch
from jaxtyping import Float
from torch import Tensor

from kava.eviction.trace import Options, Trace


def uniform(trace: Trace, options: Options) -> Float[Tensor, "L B H C"]:
    """Score 1 at entries floor((m + 1/2) C / M) for m = 0 .. M - 1, the middles of M equal intervals of the C real entries; else 0.

    The M entries are distinct as soon as C >= M. Neither the first nor the last entry is favoured.
    """
    device = trace.mask.device
    counts = trace.mask.sum(-1)[:, None]
    middles = (2 * torch.arange(options.num_slots, device=device) + 1) * counts // max(2 * options.num_slots, 1)
    positions = torch.arange(trace.mask.shape[1], device=device)
    chosen = (positions[None, :, None] == middles[:, None, :]).any(-1)
    return trace.by_position(chosen.float())
