"""Accuracy and confidence by the number of steps of a problem, over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kava.results import Row, by_steps
from kava.results.statistics import summarise, wilson_interval


@dataclass(frozen=True)
class StepRow:
    """Results on the questions with one number of steps, as fractions.

    Attributes:
        steps: number of steps.
        questions: number of questions.
        accuracy, std: mean and sample standard deviation over the seeds; `std` is None for one seed.
        interval: 95 % interval: Student's t over the seeds, or Wilson's over the questions for one seed.
        confidence: mean probability that the model gave to its answers; None where it was not recorded.
    """

    steps: int
    questions: int
    accuracy: float
    std: float | None
    interval: tuple[float, float]
    confidence: float | None


def step_rows(seeds: Mapping[int, Sequence[Row]]) -> list[StepRow]:
    """Return a row per number of steps, fewest steps first.

    Args:
        seeds: the answers of each seed to the same questions.
    """
    lengths: dict[int, list[list[Row]]] = {}
    for rows in seeds.values():
        for steps, own in by_steps(rows).items():
            lengths.setdefault(steps, []).append(own)
    return [_step_row(steps, found) for steps, found in sorted(lengths.items())]


def _step_row(steps: int, seeds: Sequence[Sequence[Row]]) -> StepRow:
    right = [sum(row.correct for row in own) for own in seeds]
    summary = summarise([correct / len(own) for correct, own in zip(right, seeds, strict=True)], least=1 / len(seeds[0]))
    low, high = summary.ci95 or wilson_interval(right[0], len(seeds[0]))
    known = [row.confidence for own in seeds for row in own if row.confidence is not None]
    confidence = sum(known) / len(known) if known else None
    return StepRow(steps, len(seeds[0]), summary.mean, summary.std, (max(low, 0.0), min(high, 1.0)), confidence)
