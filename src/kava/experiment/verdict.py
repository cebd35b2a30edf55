"""Verdict on a small comparison of KaVa with full CoT and no CoT: time per question, accuracy against the chance level, one sentence."""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from kava.checkpoint import open_checkpoint

ASKED_ALONE = 20


@dataclass(frozen=True)
class Measured:
    """One method on the test questions: accuracy (a fraction) with its 95 % interval, forward passes and milliseconds per question."""

    accuracy: float
    interval: tuple[float, float]
    forward_passes: float
    alone_ms: float
    together_ms: float


def alone_ms(checkpoint: Path, questions: list[str]) -> float:
    """Return the median milliseconds per question at batch size 1, after one warm-up question."""
    trained = open_checkpoint(checkpoint)
    reasoner, most = trained.reasoner(), trained.config.evaluation.max_new_tokens
    milliseconds = []
    for question in [questions[0], *questions[:ASKED_ALONE]]:
        started = time.perf_counter()
        reasoner.generate([question], max_new_tokens=most)
        milliseconds.append(1000 * (time.perf_counter() - started))
    return median(milliseconds[1:])


def verdict(no_cot: Measured, full_cot: Measured, kava: Measured, chance: float) -> str:
    """Return one sentence: whether KaVa reasons without writing, how close it comes to full CoT, and at what cost."""
    figures = (
        f"{_percent(kava.accuracy)} with {kava.forward_passes:.0f} forward passes and {kava.alone_ms:.0f} ms a question, against "
        f"{_percent(full_cot.accuracy)}, {full_cot.forward_passes:.0f} passes and {full_cot.alone_ms:.0f} ms with a written chain, "
        f"{_percent(no_cot.accuracy)} with none, and {_percent(chance)} by guessing"
    )
    if kava.interval[0] <= max(no_cot.interval[1], chance):
        return f"KaVa has not learned to reason here: {figures}."
    near = kava.interval[1] >= full_cot.interval[0]
    return f"KaVa reasons without writing{', as well as in words' if near else ', not quite as well as in words'}: {figures}."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
