"""The sum of the losses (method section 5)."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LossTerms:
    """The unweighted losses of each example; None where a method does not use one."""

    student_ce: Float[Tensor, " B"] | None = None
    teacher_ce: Float[Tensor, " B"] | None = None
    codi: Float[Tensor, " B"] | None = None
    kv: Float[Tensor, " B"] | None = None


TERM_NAMES = tuple(field.name for field in fields(LossTerms))


def combine(terms: LossTerms, alpha1: float, alpha2: float) -> Float[Tensor, " B"]:
    """L = CE_student + CE_teacher + alpha1 L_CODI + alpha2 L_KV, over the terms that are there.

    Raises:
        ValueError: there are none.
    """
    weighted = ((terms.student_ce, 1.0), (terms.teacher_ce, 1.0), (terms.codi, alpha1), (terms.kv, alpha2))
    present = [weight * loss for loss, weight in weighted if loss is not None]
    if not present:
        raise ValueError("a training step without a single loss")
    return torch.stack(present).sum(0)
