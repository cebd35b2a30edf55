"""The demo's sentence says what the numbers say."""

from pathlib import Path

import pytest

from kava.checkpoint.shipped import SHIPPED
from kava.data.mini.problems import EXAMPLE
from kava.experiment.demo import Measured, alone_ms, verdict
from kava.report.aggregate_file import SeedValues


def measured(accuracy: float, interval: tuple[float, float], passes: float, alone_ms: float) -> Measured:
    values = SeedValues(
        seed=42, accuracy=accuracy, accuracy_ci95=list(interval), forward_passes=passes, generated_tokens=3.0, seconds_per_question=0.002
    )
    return Measured(values, alone_ms)


NO_COT = measured(0.21, (0.18, 0.24), 2.0, 4.0)
FULL_COT = measured(0.996, (0.99, 1.0), 23.5, 61.0)
KAVA = measured(0.992, (0.98, 0.996), 9.0, 38.0)


@pytest.mark.parametrize(
    ("kava", "beginning"),
    [
        (KAVA, "KaVa reasons without writing, as well as in words: 99 % with 9 forward passes and 38 ms a question, against 100 %, 24"),
        (measured(0.95, (0.94, 0.96), 9.0, 38.0), "KaVa reasons without writing, not quite as well as in words: 95 %"),
        (measured(0.23, (0.2, 0.26), 9.0, 38.0), "KaVa has not learned to reason here: 23 %"),
    ],
)
def test_the_sentence_follows_the_numbers(kava: Measured, beginning: str) -> None:
    said = verdict(NO_COT, FULL_COT, kava, 0.2)
    assert said.startswith(beginning)
    assert said.endswith("21 % with none, and 20 % by guessing.")
    assert said.count(". ") == 0


def test_a_chance_level_above_no_cot_counts() -> None:
    assert "has not learned" in verdict(measured(0.15, (0.1, 0.2), 2.0, 4.0), FULL_COT, measured(0.45, (0.4, 0.5), 9.0, 38.0), 0.5)


def test_a_question_alone_takes_time(tmp_path: Path) -> None:
    assert 0.1 < alone_ms(SHIPPED["builtin:mini"], [EXAMPLE] * 3) < 10_000
