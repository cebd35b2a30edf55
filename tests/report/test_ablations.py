"""The HTML report of what the suites leave: methods in the tables, ablations beside their centre, figures that mix no two kinds of run."""

from pathlib import Path

import pytest

from helpers.result_files import make_result, make_row
from kava.config import config_path, load_config
from kava.experiment.suite import plans_of, read_suite
from kava.methods import METHODS
from kava.report.ablations import ablation_table, bars, families, ranked
from kava.report.group import variants
from kava.report.grouping import by_scope, points, with_distinct_cost
from kava.report.html_figures import styles_of
from kava.report.reference import load_reference
from kava.report.runs import Found, find_runs
from kava.report.tables import changes, label_of, published_table, relevant, result_tables
from kava.results import result_path, rows_path, write_result, write_rows
from kava.results.statistics import paired_difference

SUITES = Path(__file__).parents[2] / "suites"
SEEDS, QUESTIONS = (1, 2), 12
TWO_SEEDS = {("mini-ablations", "kava"), ("mini-ablations", "kv_mse")}
PASSES = {"no_cot": 2.0, "full_cot": 20.0, "iterations_3": 5.0}


def right(run: str, seed: int, question: int) -> bool:
    return (7 * question + 3 * seed + len(run)) % (3 if run == "kava" else 2) == 0


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    root = tmp_path_factory.mktemp("suites")
    for name in ("mini-table1", "mini-ablations"):
        suite = read_suite(SUITES / f"{name}.yaml").model_copy(update={"seeds": list(SEEDS)})
        for (variant, run), plan in plans_of(suite, root / name, {}).items():
            overrides = {**suite.variants[variant], **suite.runs[run]}
            for seed in SEEDS if (name, run) in TWO_SEEDS else SEEDS[:1]:
                config = load_config(config_path("mini"), {**overrides, "training.seed": seed})
                rows = [make_row(i, correct=right(run, seed, i), steps=1 + i % 2) for i in range(QUESTIONS)]
                for dataset in ("reworded", "test") if (name, run) == ("mini-table1", "kava") else ("test",):
                    path = result_path(plan.seed_dir(seed), dataset)
                    correct = sum(row.correct for row in rows)
                    write_result(path, make_result(seed, dataset, correct, QUESTIONS, PASSES.get(run, 6.0), config))
                    write_rows(rows_path(path), rows)
    return find_runs(root)


def test_ablations_stand_beside_their_centre(found: Found) -> None:
    reference = load_reference()
    (family,) = families(ranked(variants(found.groups), reference))
    suite = read_suite(SUITES / "mini-ablations.yaml")
    assert family.folder == "mini-ablations/all"
    assert len(family.members) == len(suite.runs)
    shown = bars(family, reference)
    assert shown[0][0] == "KaVa"
    table = ablation_table(family, "ablations1", reference)
    by_run = {row[-1].text: row for row in table.rows}
    assert set(by_run) == set(suite.runs)
    assert by_run["lora"][0].text == "lora.enabled = true, lora.r = 16, lora.dropout = 0"
    assert by_run["alpha2_2"][0].text == "alpha2_kv = 2"
    labels = [label for label, _, _ in shown]
    assert [label for label in labels if "num_tokens" in label and "," not in label] == [f"num_tokens = {m}" for m in (6, 12, 24)]


def test_the_baseline_is_in_the_table_whatever_most_ablations_were_measured_on(tmp_path: Path) -> None:
    measured = {"kava": ("test", {}), "mse": ("test", {"loss.kv_loss_type": "mse"})}
    measured |= {f"alpha_{weight}": ("larger", {"loss.alpha2_kv": weight}) for weight in (2, 3, 5)}
    for name, (dataset, overrides) in measured.items():
        write_result(result_path(tmp_path / name, dataset), make_result(dataset=dataset, overrides=overrides))
    (family,) = families(ranked(variants(find_runs(tmp_path).groups), load_reference()))
    assert family.dataset == "test"
    assert [group.path for group, _ in family.members] == ["kava", "mse"]


def test_differences_are_paired_over_the_seeds_that_both_have(found: Found) -> None:
    (family,) = families(ranked(variants(found.groups), load_reference()))
    table = ablation_table(family, "x", load_reference())
    by_run = {row[-1].text: row for row in table.rows}

    def marks(run: str, seed: int) -> list[bool]:
        return [right(run, seed, i) for i in range(QUESTIONS)]

    for run, seeds in (("kv_mse", SEEDS), ("alpha2_2", SEEDS[:1])):
        test = paired_difference([(marks(run, seed), marks("kava", seed)) for seed in seeds])
        _, _, difference, p_value, *_ = by_run[run]
        assert difference.value == pytest.approx(100 * test.difference)
        assert difference.remark == f"[{100 * test.ci95[0]:+.1f}, {100 * test.ci95[1]:+.1f}]"
        assert p_value.value == test.p_value
    assert [cell.text for cell in table.rows[0][2:4]] == ["--", "--"]


def test_table_1_holds_the_methods_in_the_papers_order(found: Found) -> None:
    reference = load_reference()
    methods = [(group, label_of(group, {}, reference)) for group, changed in ranked(variants(found.groups), reference) if not changed]
    table = result_tables(methods, reference)[0]
    assert table.columns == ["Method", "test", "reworded", "Training data", "Source"]
    order = ["Full CoT", "No CoT", "iCoT", "Coconut", "CODI", "SIM-CoT", "PCCoT", "KaVa"]
    assert set(reference.labels.methods) == set(METHODS)
    natural = [row[0].text for row in table.rows if row[3].remark == "natural language"]
    assert natural == order
    assert [row[0].text for row in table.rows if (row[3].text, row[3].remark) == ("mini", "equation")] == [*order, "KaVa"]
    assert table.rows[0][-1].text == "ours: mini-table1/equation/full_cot, seed 1"
    assert relevant(methods, reference) == []
    assert len(published_table(reference).rows) >= 14


def test_a_figure_mixes_no_two_kinds_of_traces(found: Found) -> None:
    reference = load_reference()
    labelled = [(group, label_of(group, changed, reference)) for group, changed in ranked(variants(found.groups), reference)]
    methods = [(group, label) for group, label in labelled if "=" not in label]
    scopes = dict(by_scope(with_distinct_cost(labelled, methods), reference))
    assert list(scopes) == ["equation", "natural language"]
    styles = styles_of([label for _, label in scopes["equation"]], reference.labels.methods)
    shown = points(scopes["equation"], "test", styles, reference)
    names = [point.label for point in shown]
    # Of the ablations, the one that costs another number of passes; of the two KaVa, the one with more test sets keeps the name.
    assert names.count("KaVa") == 1
    assert "KaVa (mini-ablations/all)" in names
    assert "KaVa, num_iterations = 3" in names
    assert "KaVa, num_iterations = 1" not in names
    assert len(scopes["natural language"]) == len(METHODS)


def test_short_names_of_settings() -> None:
    departures = {"latent.num_iterations": 6, "loss.alpha1_codi": 0.0, "lora.r": 16}
    assert changes(departures) == "num_iterations = 6, alpha1_codi = 0, lora.r = 16"
