"""Statistics for result tables: intervals for one run and over seeds, and tests between two methods on the same questions.

    wilson_interval(745, 1319)             # one run
    summarise([0.561, 0.569, 0.565])       # over seeds
    paired_difference([(correct_a, correct_b), ...])    # two methods with the same seeds, on the same questions

scipy is imported only when it is needed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_CONFIDENCE = 0.95
# What lies below the upper bound of a two-sided interval.
_QUANTILE = (1 + _CONFIDENCE) / 2


@dataclass(frozen=True)
class SeedSummary:
    """A measure over n seeds: mean, sample standard deviation (n - 1) and t interval; the last two are None for one seed."""

    n: int
    mean: float
    std: float | None
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class McNemar:
    """Numbers of questions that only a, or only b, answered correctly, and the exact two-sided p value."""

    only_a: int
    only_b: int
    p_value: float


@dataclass(frozen=True)
class PairedDifference:
    """Difference of two accuracies, a - b, as fractions.

    Attributes:
        difference: mean over the seeds.
        ci95: interval over the seeds, or over the questions if there is one seed.
        p_value: two-sided, for the hypothesis of no difference: paired t over the seeds, or exact McNemar for one seed.
        n: number of seeds.
        per_seed: difference of each seed.
        mcnemar_p: exact McNemar p of each seed; the sign of `per_seed` shows which side is better.
    """

    difference: float
    ci95: tuple[float, float]
    p_value: float
    n: int
    per_seed: list[float]
    mcnemar_p: list[float]


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Compute the 95 % Wilson score interval of a proportion (Wilson 1927), as fractions.

    Raises:
        ValueError: not 0 <= correct <= total, or total is 0.
    """
    from scipy.stats import binomtest

    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"no proportion: {correct} of {total}")
    interval = binomtest(correct, total).proportion_ci(_CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def summarise(values: Sequence[float], least: float = 0.0) -> SeedSummary:
    """Compute the mean, sample standard deviation and 95 % interval (Student's t) over seeds.

    Args:
        values: one per seed.
        least: lower bound of the deviation used for the interval, such as the share of one question in an accuracy: a few seeds that
            agree by chance do not show that all seeds would.

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("no values to summarise")
    mean = math.fsum(values) / n
    if n == 1:
        return SeedSummary(1, mean, None, None)
    from scipy.stats import t

    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(t.ppf(_QUANTILE, n - 1)) * max(std, least) / math.sqrt(n)
    return SeedSummary(n, mean, std, (mean - half, mean + half))


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> McNemar:
    """Run the exact (binomial) McNemar test on two methods' right and wrong answers to the same questions.

    Raises:
        ValueError: lengths differ or are 0.
    """
    from scipy.stats import binomtest

    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"paired samples need the same questions: {len(a)} against {len(b)}")
    only_a = sum(x and not y for x, y in zip(a, b, strict=True))
    only_b = sum(y and not x for x, y in zip(a, b, strict=True))
    return McNemar(only_a, only_b, 1.0 if only_a == only_b else float(binomtest(only_a, only_a + only_b).pvalue))


def paired_difference(seeds: Sequence[tuple[Sequence[bool], Sequence[bool]]]) -> PairedDifference:
    """Compute the accuracy difference a - b of two methods that were trained with the same seeds and answered the same questions.

    Several seeds: Student's paired t over the differences of the seeds. Questions do not replace seeds: another run could differ as
    much as the given ones do. The deviation is at least the share of one question, because seeds that agree by chance on few questions
    do not show that all seeds would.

    One seed: Bonett and Price's adjusted interval over questions (2012), which keeps its confidence level with few questions, and the
    exact McNemar test. The result says nothing about other seeds.

    Args:
        seeds: for each seed, whether a and b answered each question correctly.

    Raises:
        ValueError: no seeds, or lengths that differ or are 0.
    """
    if not seeds:
        raise ValueError("no seeds to compare")
    tests = [mcnemar(a, b) for a, b in seeds]
    questions = len(seeds[0][0])
    differences = [(test.only_a - test.only_b) / questions for test in tests]
    if len(seeds) == 1:
        interval, p_value = _adjusted_interval(tests[0], questions), tests[0].p_value
    else:
        interval, p_value = _paired_t(differences, 1 / questions)
    low, high = (min(max(bound, -1.0), 1.0) for bound in interval)
    return PairedDifference(math.fsum(differences) / len(seeds), (low, high), p_value, len(seeds), differences, [t.p_value for t in tests])


def _paired_t(differences: Sequence[float], least: float) -> tuple[tuple[float, float], float]:
    from scipy.stats import t

    n, mean = len(differences), math.fsum(differences) / len(differences)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in differences) / (n - 1))
    error = max(deviation, least) / math.sqrt(n)
    half = float(t.ppf(_QUANTILE, n - 1)) * error
    return (mean - half, mean + half), float(2 * t.sf(abs(mean) / error, n - 1))


def _adjusted_interval(test: McNemar, questions: int) -> tuple[float, float]:
    from scipy.stats import norm

    a, b = (test.only_a + 1) / (questions + 2), (test.only_b + 1) / (questions + 2)
    half = float(norm.ppf(_QUANTILE)) * math.sqrt((a + b - (a - b) ** 2) / (questions + 2))
    return a - b - half, a - b + half
