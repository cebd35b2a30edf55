"""CODI's hidden-state distillation (arXiv 2502.21074)."""

from jaxtyping import Float
from torch import Tensor

from kava.losses.distance import DISTANCES, MIN_DEVIATION, at_least_float32


def codi_loss(teacher: Float[Tensor, "L B E"], student: Float[Tensor, "L B E"], distance: str, layerwise_std: bool) -> Float[Tensor, " B"]:
    """Mean over layers of dist(sg[h_teacher], h_student) / sigma at the distillation token; dist is a mean over E.

    sigma is the (biased) standard deviation of the teacher's hidden state of *that example*. CODI's code takes it over the whole
    batch, which makes an example's loss depend on the other examples; here it does not depend on the batch. As in CODI's code,
    sigma divides the distance and not the residual.

    Args:
        teacher: hidden states at the distillation token; no gradient flows into them.
        student: likewise, with gradient.
        distance: a name in `DISTANCES`.
        layerwise_std: one sigma per layer, over E; else a global one over L and E.

    Returns:
        Float32 loss of each example.
    """
    teacher, student = at_least_float32(teacher.detach()), at_least_float32(student)
    distances = DISTANCES[distance](teacher - student).mean(-1)
    over = -1 if layerwise_std else (0, -1)
    return (distances / teacher.std(over, unbiased=False).clamp_min(MIN_DEVIATION)).mean(0)
