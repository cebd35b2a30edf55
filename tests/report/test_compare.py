"""Ours against the reference numbers: which rows match, the difference, and the guide's 2 points."""

import pytest

from helpers.result_files import make_result
from kava.report.aggregate import SeedResults, combine
from kava.report.compare import compare, reference_table
from kava.report.reference import last_part, load_reference


def aggregate(correct=545, **kwargs):
    return combine([SeedResults("run", {"gsm8k": make_result(correct=correct, total=1000, **kwargs)})])


def cells(source, correct=545, **kwargs):
    return {cell.measure: cell for cell in compare([("llama1b_aug", aggregate(correct, **kwargs))], load_reference(), source)}


def test_difference_and_tolerance_per_cell():
    paper = cells("paper")
    assert paper["accuracy"].reference == 56.5
    assert paper["accuracy"].difference == pytest.approx(-2.0)
    assert paper["accuracy"].within is True  # the edge belongs to it
    assert cells("paper", 544)["accuracy"].within is False
    assert cells("paper", 586)["accuracy"].within is False


def test_a_part_of_a_test_set_is_marked_and_passes_no_judgement():
    part = combine([SeedResults("run", {"gsm8k": make_result(correct=11, total=20, overrides={"evaluation.max_samples": 20})})])
    found = compare([("llama1b_aug", part)], load_reference(), "paper")
    assert [(cell.within, cell.partial) for cell in found] == [(None, "first 20 questions")] * 2
    table = reference_table(found, "paper", 2.0)
    assert table.rows[0][3].text == "55.0‡"
    assert table.notes[0] == "‡ not a full evaluation: first 20 questions"


def test_paper_and_guide_differ_in_forward_passes():
    assert cells("paper", passes=6.9)["forward_passes"].difference == pytest.approx(0)
    assert cells("guide", passes=6.9)["forward_passes"].difference == pytest.approx(-21.4)
    assert cells("guide")["forward_passes"].within is None


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, 56.5),
        ({"loss.use_projection": False}, 52.2),
        ({"loss.alpha1_codi": 0.0}, 52.8),
        ({"method": "pccot"}, 53.4),
        ({"method": "full_cot"}, 61.6),
        ({"dataset.name": "whynlp/gsm8k-aug-nl", "dataset.cot_type": "natural_language"}, 55.7),
        (
            {"model.name": "/models/Llama-3.2-3B-Instruct/", "loss.alpha1_codi": 20, "loss.alpha2_kv": 2, "loss.layerwise_std": False},
            65.7,
        ),
    ],
)
def test_the_row_is_that_of_the_same_method_model_data_and_ablation(overrides, expected):
    assert cells("paper", overrides=overrides)["accuracy"].reference == expected


@pytest.mark.parametrize("overrides", [{"model.name": "builtin:mini"}, {"loss.use_projection": False, "loss.alpha1_codi": 0.0}])
def test_nothing_is_compared_with_what_is_not_the_same(overrides):
    assert cells("paper", overrides=overrides) == {}


def test_reference_numbers_of_the_paper_and_the_guide():
    reference = load_reference()
    assert reference.tolerance_points == 2.0
    accuracy = {
        (r.source, r.method, r.model, r.train_dataset, r.dataset): (r.accuracy, r.accuracy_std)
        for r in reference.rows
        if r.accuracy and not r.settings
    }
    for data, values in {
        "gsm8k-aug": (61.6, 30.9, 19.0, 45.3, 55.6, 53.4, 56.5),
        "gsm8k-aug-nl": (53.2, 33.1, 15.2, 27.2, 49.7, 50.7, 55.7),
    }.items():
        for method, value in zip(("full_cot", "no_cot", "icot", "coconut", "codi", "pccot", "kava"), values, strict=True):
            assert accuracy["paper", method, "Llama-3.2-1B-Instruct", data, "gsm8k"][0] == value
    guide = {key[3:]: value for key, value in accuracy.items() if key[0] == "guide"}
    assert guide == {
        ("gsm8k-aug", "gsm8k"): (56.5, 0.4), ("gsm8k-aug", "gsm8k-hard"): (34.2, 0.6), ("gsm8k-aug", "svamp"): (48.3, 0.5),
        ("gsm8k-aug-nl", "gsm8k"): (55.8, 0.5), ("gsm8k-aug-nl", "gsm8k-hard"): (33.7, 0.7), ("gsm8k-aug-nl", "svamp"): (47.9, 0.6),
    }  # fmt: skip
    assert {row.dataset for row in reference.rows if row.unconfirmed and row.accuracy} == {"gsm8k-hard", "svamp"}
    assert all(row.where for row in reference.rows)


def test_last_part():
    assert (
        last_part("meta-llama/Llama-3.2-1B-Instruct") == last_part("/m/Llama-3.2-1B-Instruct/") == last_part(r"C:\m\Llama-3.2-1B-Instruct")
    )
    assert last_part("builtin:mini") == "builtin:mini"


@pytest.mark.parametrize("method", ["kava", "codi"])
@pytest.mark.parametrize("setting", [{"evaluation.use_latent": False}, {"dataset.cot_type": "natural_language"}])
def test_another_way_of_answering_is_not_judged_by_the_published_one(setting, method):
    assert load_reference().matching(aggregate(overrides={"method": method}), "paper")
    assert not load_reference().matching(aggregate(overrides={"method": method, **setting}), "paper")


@pytest.mark.parametrize("setting", [{"latent.num_tokens": 6}, {"rkv.eviction": "crop"}, {"loss.alpha2_kv": 5}, {"lora.enabled": False}])
def test_an_ablation_is_not_judged_by_the_published_method(setting):
    assert load_reference().matching(aggregate(), "paper")
    assert not load_reference().matching(aggregate(overrides=setting), "paper")
