"""Convergence over T: distance of the latents to the fixed point T = M after each Jacobi iteration, and the resulting answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kava.data.answer_types import AnswerType, same_answer, same_prediction
from kava.data.example import Example
from kava.explain.record import Convergence, Iterations
from kava.generate import Reasoner
from kava.results.statistics import paired_difference, wilson_interval


@dataclass(frozen=True)
class FixedPointDistances:
    """Means over questions: relative distance to the fixed point per iteration and latent, share of latents with the final top token."""

    distance: Float[Tensor, "T1 M"]
    top_token_agreement: Float[Tensor, " T1"]


@torch.inference_mode()
def fixed_point_distances(reasoner: Reasoner, questions: Sequence[str], batch_size: int = 32) -> FixedPointDistances:
    """Iterate to the fixed point and compute |h_t - h_M| / |h_M| and the agreement of top tokens for t = 0 .. M."""
    exact = reasoner.with_iterations(reasoner.num_latents)
    distance, agreement = [], []
    for ids, mask in exact.batches(questions, batch_size):
        thought, _ = exact.think(ids, mask, keep_trajectory=True)
        hidden = torch.stack(thought.trajectory)[:, :, 1:].float()
        final = hidden[-1]
        distance.append((hidden - final).norm(dim=-1) / final.norm(dim=-1).clamp_min(1e-12))
        top = torch.stack([exact.model.backbone.logits(state[:, 1:]).argmax(-1) for state in thought.trajectory])
        agreement.append((top == top[-1]).float())
    return FixedPointDistances(torch.cat(distance, dim=1).mean(1), torch.cat(agreement, dim=1).mean((1, 2)))


def convergence(reasoner: Reasoner, examples: Sequence[Example], batch_size: int = 32, max_new_tokens: int = 64) -> Convergence:
    """Measure distances for every iteration, and answers for T = 0, 1, 2, the configured T, twice that, and M.

    Args:
        reasoner: a model with parallel latents; its T is the configured one: as trained, unless it was overridden.
        examples: at least one; accuracies are null unless all have a gold answer.
        batch_size, max_new_tokens: generation settings.
    """
    questions = [example.question for example in examples]
    settled = fixed_point_distances(reasoner, questions, batch_size)
    configured, exact = reasoner.num_iterations, reasoner.num_latents
    chosen = sorted({t for t in (0, 1, 2, configured, 2 * configured, exact) if t <= exact})
    predictions = {}
    for iterations in chosen:
        variant = reasoner.with_iterations(iterations)
        answered = variant.generate(questions, batch_size=batch_size, max_new_tokens=max_new_tokens)
        predictions[iterations] = [item.answer for item in answered]
    return Convergence(
        questions=len(questions),
        trained_iterations=configured,
        distance=settled.distance.tolist(),
        top_token_agreement=settled.top_token_agreement.tolist(),
        answers=[_iterations(t, predictions[t], predictions[exact], examples, reasoner.builder.answer_type) for t in chosen],
    )


def _iterations(
    t: int, found: list[str | None], exact: list[str | None], examples: Sequence[Example], answer_type: AnswerType
) -> Iterations:
    same = sum(same_prediction(a, b, answer_type) for a, b in zip(found, exact, strict=True))
    marks = correctness_of(found, examples)
    reference = correctness_of(exact, examples)
    test = None if marks is None or reference is None else paired_difference([(marks, reference)])
    return Iterations(
        iterations=t,
        agreement=same / len(found),
        agreement_ci95=list(wilson_interval(same, len(found))),
        accuracy=None if marks is None else sum(marks) / len(marks),
        difference_to_fixed_point=None if test is None else test.difference,
        difference_ci95=None if test is None else list(test.ci95),
    )


def correctness_of(predictions: Sequence[str | None], examples: Sequence[Example]) -> list[bool] | None:
    """Return whether each prediction is right; None if any gold answer is unknown."""
    if not all(example.answer for example in examples):
        return None
    return [same_answer(found, example.answer, example.answer_type) for found, example in zip(predictions, examples, strict=True)]
