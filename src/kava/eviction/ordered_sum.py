"""A sum whose last bit does not depend on the padding of a batch."""

import torch
from torch import Tensor


def ordered_sum(x: Tensor, dim: int) -> Tensor:
    """Sum over one dimension by folding halves whose sizes are powers of two.

    `torch.sum` picks its order of additions by shape and memory layout, so an example's sum can differ in the last bit between a
    padded batch and the example alone; two entries with nearly equal scores would then swap places. Here entry i is always added to
    the same partners, whatever trailing zeros follow, and elementwise additions round alike in every layout and on every device.

    Args:
        x: any shape; whatever lies beyond an example's real entries must be zero.
        dim: the dimension to sum over; if it is empty the sum is zero.

    Returns:
        x's shape without `dim`.
    """
    x = x.movedim(dim, 0)
    if x.shape[0] == 0:
        return x.new_zeros(x.shape[1:])
    while x.shape[0] > 1:
        half = 1 << ((x.shape[0] - 1).bit_length() - 1)
        paired = x.shape[0] - half
        x = torch.cat([x[:paired] + x[half:], x[paired:half]])
    return x[0]
