"""Intervals and tests against values worked out by hand or by another library."""

import math

import numpy as np
import pytest

from kava.results.statistics import mcnemar, paired_difference, summarise, wilson_interval


def test_wilson_by_hand():
    # (p + z2/2n -+ z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n) with z = 1.959964, p = 0.8, n = 10
    assert wilson_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)


@pytest.mark.parametrize(("correct", "total"), [(745, 1319), (1, 3), (1000, 1000), (153, 300)])
def test_wilson_bounds_solve_the_score_equation(correct, total):
    # (p - x)^2 = z^2 x (1 - x) / n, as a quadratic in x
    z2, share = 1.959963984540054**2, correct / total
    roots = np.roots([1 + z2 / total, -(2 * share + z2 / total), share**2])
    assert wilson_interval(correct, total) == pytest.approx(tuple(sorted(roots.real)), abs=1e-7)


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (4, 3), (-1, 3)])
def test_wilson_refuses_no_proportion(correct, total):
    with pytest.raises(ValueError, match="no proportion"):
        wilson_interval(correct, total)


def test_summary_over_three_seeds_by_hand():
    summary = summarise([0.561, 0.569, 0.565])
    assert summary.n == 3
    assert summary.mean == pytest.approx(0.565)
    assert summary.std == pytest.approx(0.004)  # sample deviation: sqrt((16 + 16 + 0) / 2) thousandths
    half = 4.302652729911275 * 0.004 / math.sqrt(3)  # t(0.975, 2 degrees of freedom)
    assert summary.ci95 == pytest.approx((0.565 - half, 0.565 + half))


def test_seeds_that_agree_have_an_interval_of_one_question_s_deviation():
    summary = summarise([1.0, 1.0, 1.0], least=1 / 20)
    half = 4.302652729911275 * 0.05 / math.sqrt(3)
    assert (summary.std, summary.ci95) == (0.0, (pytest.approx(1 - half), pytest.approx(1 + half)))
    assert summarise([0.5, 0.7], least=0.01) == summarise([0.5, 0.7])


def test_one_seed_has_no_deviation():
    summary = summarise([0.5])
    assert (summary.n, summary.mean, summary.std, summary.ci95) == (1, 0.5, None, None)


def test_no_seed_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        summarise([])


def test_mcnemar_exact_by_hand():
    # 1 question only a, 9 only b: p = 2 (C(10,0) + C(10,1)) / 2^10
    a = [True] * 5 + [True] + [False] * 9 + [False] * 3
    b = [True] * 5 + [False] + [True] * 9 + [False] * 3
    test = mcnemar(a, b)
    assert (test.only_a, test.only_b) == (1, 9)
    assert test.p_value == pytest.approx(22 / 1024)


def test_mcnemar_of_equals_is_one():
    assert mcnemar([True, False], [True, False]).p_value == 1.0


def answers(only_a, only_b, both=0, neither=0):
    """Right and wrong answers of a and b, with so many that only one of them got right."""
    a = [True] * only_a + [False] * only_b + [True] * both + [False] * neither
    return a, [False] * only_a + [True] * only_b + [True] * both + [False] * neither


def test_several_seeds_are_compared_over_seeds():
    # KaVa - CODI of docs/results/mini-table1-former (equation, test): +74.0, +39.1 and -16.4 points; t over the seeds by hand.
    test = paired_difference([answers(740, 0, 260), answers(391, 0, 609), answers(0, 164, 836)])
    assert test.per_seed == pytest.approx([0.740, 0.391, -0.164])
    assert test.difference == pytest.approx(0.3223333, abs=1e-6)
    deviation = math.sqrt(sum((value - 0.967 / 3) ** 2 for value in (0.740, 0.391, -0.164)) / 2)
    half = 4.302652729911275 * deviation / math.sqrt(3)
    assert test.ci95 == pytest.approx((0.967 / 3 - half, 1.0))  # the upper bound would lie beyond what a difference can be
    assert 0.2 < test.p_value < 0.4
    assert max(test.mcnemar_p) < 1e-30  # each seed alone is beyond doubt, and two of them point the other way than the third
    assert test.n == 3


def test_seeds_that_agree_on_one_question_show_little():
    test = paired_difference([answers(1, 0)] * 3)
    # A deviation of at least one question: t = 1 / (1 / sqrt(3)), two degrees of freedom.
    assert test.p_value == pytest.approx(0.2254, abs=1e-4)
    assert test.ci95 == (-1.0, 1.0)  # 1 -+ 4.3027 / sqrt(3), cut to what a difference can be


def test_one_seed_is_compared_over_questions_exactly():
    test = paired_difference([answers(1, 0)])
    assert test.p_value == 1.0
    assert test.ci95[0] < 0 < test.ci95[1] <= 1
    # Bonett and Price by hand: (b + 1 - c - 1) / (n + 2) -+ z sqrt((p + q - (p - q)^2) / (n + 2)), b 9, c 1, n 18.
    p, q = 10 / 20, 2 / 20
    half = 1.959963984540054 * math.sqrt((p + q - (p - q) ** 2) / 20)
    test = paired_difference([answers(9, 1, 5, 3)])
    assert test.ci95 == pytest.approx((0.4 - half, 0.4 + half))
    assert test.p_value == pytest.approx(22 / 1024)
    assert (test.difference, test.n) == (pytest.approx(8 / 18), 1)


@pytest.mark.parametrize("seeds", [1, 3])
def test_an_interval_covers_as_often_as_it_says(seeds):
    # Two methods whose accuracies vary with the seed (deviation 0.06 each) around the same 0.6: 95 of 100 intervals hold zero over
    # seeds; an interval over questions holds it only for the questions' own share of the noise (one seed, no such variation).
    generator = np.random.default_rng(0)
    spread = 0.06 if seeds > 1 else 0.0
    held = 0
    for _ in range(300):
        pairs = [
            tuple((generator.random(200) < 0.6 + spread * generator.standard_normal()).tolist() for _ in range(2)) for _ in range(seeds)
        ]
        low, high = paired_difference(pairs).ci95
        held += low <= 0 <= high
    assert 0.92 <= held / 300 <= 0.98


def test_no_seeds_and_other_questions_are_refused():
    with pytest.raises(ValueError, match="no seeds"):
        paired_difference([])
    with pytest.raises(ValueError, match="same questions"):
        paired_difference([([True], [True, False])])


def test_one_seed_s_interval_is_the_normal_one_on_many_questions():
    generator = np.random.default_rng(1)
    a, b = generator.random(1319) < 0.56, generator.random(1319) < 0.50
    difference = a.astype(float) - b.astype(float)
    half = 1.959964 * difference.std() / math.sqrt(1319)
    result = paired_difference([(a.tolist(), b.tolist())])
    assert result.difference == pytest.approx(difference.mean())
    assert result.ci95 == pytest.approx((difference.mean() - half, difference.mean() + half), abs=0.001)
