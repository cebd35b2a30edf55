"""The sentences on top of the report: who wins, by how much, at what cost, and whether the intervals part."""

from typing import Any

from helpers.result_files import make_result, make_row
from kava.report.aggregate import SeedResults, combine
from kava.report.group import Group
from kava.report.reference import load_reference
from kava.report.tables import Labelled
from kava.report.verdict import Verdict, verdicts

TOTAL = 1000
LABELS = {"kava": "KaVa", "full_cot": "Full CoT", "no_cot": "No CoT", "pccot": "PCCoT"}


def labelled(correct: dict[str, dict[str, int]], golds: int = 4, **overrides: Any) -> Labelled:
    """Methods with so many right answers per test set, to questions with so many different answers."""
    found: Labelled = []
    for method, by_dataset in correct.items():
        passes = {"full_cot": 65.0}.get(method, 6.9)
        results = {
            dataset: make_result(1, dataset, right, TOTAL, passes, overrides={"method": method, **overrides})
            for dataset, right in by_dataset.items()
        }
        rows = {dataset: {1: [make_row(i, gold=str(i % golds)) for i in range(TOTAL)]} for dataset in by_dataset} if golds else {}
        found = [*found, (Group(method, combine([SeedResults(method, results)]), rows), LABELS[method])]
    return found


def judge(correct: dict[str, dict[str, int]], golds: int = 4, **overrides: Any) -> list[Verdict]:
    """The verdict on them."""
    return verdicts(labelled(correct, golds, **overrides), load_reference())


def test_the_best_method_is_set_beside_full_cot_with_its_cost_and_chance() -> None:
    (verdict,) = judge({"full_cot": {"gsm8k": 616}, "no_cot": {"gsm8k": 309}, "pccot": {"gsm8k": 534}, "kava": {"gsm8k": 565}})
    assert verdict.headline == (
        "KaVa is best without a written chain: 56.5 % on GSM8k, 5.1 points below Full CoT (61.6 %): the 95 % intervals overlap; "
        "6.9 forward passes a question instead of 65.0."
    )
    assert verdict.sentences == [
        (
            "GSM8k",
            "KaVa 56.5 % [53.4, 59.5], 5.1 points below Full CoT (61.6 %): the 95 % intervals overlap; "
            "6.9 forward passes a question instead of 65.0. Chance level 25.0 %.",
        )
    ]


def test_intervals_that_part_are_said_to_in_both_directions() -> None:
    (verdict,) = judge(
        {"full_cot": {"gsm8k": 700, "svamp": 300, "gsm8k-hard": 500}, "kava": {"gsm8k": 500, "svamp": 500, "gsm8k-hard": 500}}
    )
    by_name = dict(verdict.sentences)
    assert "20.0 points below Full CoT (70.0 %): the 95 % intervals do not overlap" in by_name["GSM8k"]
    assert "20.0 points above Full CoT (30.0 %): the 95 % intervals do not overlap" in by_name["SVAMP"]
    assert "level with Full CoT (50.0 %): the 95 % intervals overlap" in by_name["GSM8k-Hard"]
    assert verdict.headline.startswith("KaVa is best without a written chain on all 3 test sets: 50.0 % on GSM8k, ")


def test_the_winner_is_the_one_on_most_test_sets_whoever_it_is() -> None:
    right = {"pccot": {"gsm8k": 500, "gsm8k-hard": 300, "svamp": 500}, "kava": {"gsm8k": 600, "gsm8k-hard": 200, "svamp": 400}}
    (verdict,) = judge(right)
    assert verdict.headline == (
        "PCCoT is best on 2 of 3 test sets: 30.0 % on GSM8k-Hard, 10.0 points above KaVa (20.0 %): the 95 % intervals do not overlap; "
        "6.9 forward passes a question instead of 6.9."
    )


def test_what_does_not_beat_chance_is_said() -> None:
    (verdict,) = judge({"kava": {"gsm8k": 260}})
    assert verdict.headline == "KaVa: 26.0 % on GSM8k, with no other method to compare with; 6.9 forward passes a question."
    assert verdict.sentences[0][1].endswith("Chance level 25.0 %, not clearly above it.")
    (without,) = judge({"kava": {"gsm8k": 260}}, golds=0)
    assert "hance" not in without.sentences[0][1]


def test_a_part_of_a_test_set_is_no_full_evaluation() -> None:
    (verdict,) = judge({"kava": {"gsm8k": 500}}, **{"evaluation.max_samples": TOTAL})
    assert verdict.sentences[0][1].endswith("Not a full evaluation: first 1000 questions.")
    full = verdicts(labelled({"kava": {"gsm8k": 500}}), load_reference())[0].sentences[0][1]
    assert "Not a full" not in full
    part = labelled({"full_cot": {"gsm8k": 700}}, **{"evaluation.max_samples": TOTAL})
    (verdict,) = verdicts([*labelled({"kava": {"gsm8k": 500}}), *part], load_reference())
    assert verdict.sentences[0][1].endswith("Not a full evaluation: Full CoT, first 1000 questions.")
