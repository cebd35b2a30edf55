"""KaVa's KV-cache distillation (arXiv 2510.02312): the latents' keys and values against the teacher's compressed ones."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kava.losses.distance import DISTANCES, MIN_DEVIATION, at_least_float32

Parts = Literal["both", "keys", "values"]


def kv_loss(
    teacher_keys: Float[Tensor, "L B H M D"],
    teacher_values: Float[Tensor, "L B H M D"],
    student_keys: Float[Tensor, "L B H M D"],
    student_values: Float[Tensor, "L B H M D"],
    slot_mask: Bool[Tensor, "B M"],
    distance: str,
    layerwise_std: bool,
    parts: Parts = "both",
) -> Float[Tensor, " B"]:
    """1/2 dist(sg[K_teacher], K_student) + 1/2 dist(sg[V_teacher], V_student), per example.

    Each dist is a mean over the example's filled slots, layers, heads and D. `parts` leaves one of the two terms out and keeps the
    weight 1/2 of the other, so alpha2 means the same in that ablation.

    Args:
        teacher_keys: kept entries of the trace; no gradient flows into them. Likewise `teacher_values`.
        student_keys: the latents' entries, with gradient. Likewise `student_values`.
        slot_mask: true at slots that hold an entry; empty ones may hold anything and get a gradient of exactly 0.
        distance: a name in `DISTANCES`.
        layerwise_std: divide each layer's residual by that layer's teacher deviation.
        parts: which of the two terms to use.

    Returns:
        Float32 loss of each example; 0 for an example without filled slots.
    """
    terms = []
    if parts != "values":
        terms.append(_distance(teacher_keys, student_keys, slot_mask, distance, layerwise_std))
    if parts != "keys":
        terms.append(_distance(teacher_values, student_values, slot_mask, distance, layerwise_std))
    return sum(terms[1:], terms[0]) / 2


def _distance(
    teacher: Float[Tensor, "L B H M D"],
    student: Float[Tensor, "L B H M D"],
    slot_mask: Bool[Tensor, "B M"],
    distance: str,
    layerwise_std: bool,
) -> Float[Tensor, " B"]:
    filled = slot_mask[None, :, None, :, None]
    elements = (slot_mask.sum(-1) * teacher.shape[2] * teacher.shape[4]).clamp_min(1)
    # Empty slots become 0 while the tensors are still in half precision; the difference promotes the student to float32.
    teacher, student = at_least_float32(torch.where(filled, teacher.detach(), 0)), torch.where(filled, student, 0)
    residual = teacher - student
    if layerwise_std:
        residual = residual / _deviation(teacher, filled, elements)[:, :, None, None, None]
    return (DISTANCES[distance](residual).sum((2, 3, 4)) / elements).mean(0)


def _deviation(teacher: Float[Tensor, "L B H M D"], filled: Bool[Tensor, "1 B 1 M 1"], elements: Int[Tensor, " B"]) -> Float[Tensor, "L B"]:
    """Biased standard deviation of each layer and example over heads, filled slots (others hold 0) and D."""
    mean = teacher.sum((2, 3, 4)) / elements
    centred = torch.where(filled, teacher - mean[:, :, None, None, None], 0)
    return (centred.square().sum((2, 3, 4)) / elements).sqrt().clamp_min(MIN_DEVIATION)
