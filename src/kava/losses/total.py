"""The sum of the losses (method section 5)."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

LossTerms = dict[str, Float[Tensor, " B"]]
"""The unweighted losses of each example that a method uses, by name, in the order in which they are logged."""


def combine(terms: LossTerms, weights: Mapping[str, float]) -> Float[Tensor, " B"]:
    """Compute L = sum of weight x term over the given terms: CE_student + CE_teacher + alpha1 L_CODI + alpha2 L_KV for KaVa.

    Raises:
        ValueError: there are no terms.
        KeyError: a term has no weight.
    """
    if not terms:
        raise ValueError("a training step without a single loss")
    return torch.stack([weights[name] * loss for name, loss in terms.items()]).sum(0)
