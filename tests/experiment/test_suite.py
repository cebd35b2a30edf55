"""Suites: what a file may say, and which runs it stands for."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.result_files import make_result
from kava.commands.run_multi_seed import RunMultiSeed
from kava.config import load_config
from kava.config.overrides import parse_overrides
from kava.errors import UserError
from kava.experiment.collect import write_aggregate
from kava.experiment.demo import demo
from kava.experiment.multi_seed import choose_datasets
from kava.experiment.reproduce import chosen, reproduce
from kava.experiment.suite import plans_of, read_suite, suite_path
from kava.report.aggregate import SeedResults, combine
from kava.report.aggregate_file import read_aggregates
from kava.report.group import Group

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "suites").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_suite_is_valid(path: Path) -> None:
    suite = read_suite(path)
    plans = plans_of(suite, Path("out"), {})
    assert len(plans) == len(suite.variants) * len(suite.runs)


def test_a_plan_carries_its_overrides_and_its_fingerprint() -> None:
    plans = plans_of(read_suite("suites/demo.yaml"), Path("out"), {"training.batch_size": 8})
    plan = plans["all", "no_cot"]
    assert plan.output_dir == Path("out/all/no_cot")
    assert plan.seed_dir(42) == Path("out/all/no_cot/seed_42")
    assert plan.train_flags[plan.train_flags.index("--method") + 1] == "no_cot"
    assert plan.train_flags[plan.train_flags.index("--training.batch_size") + 1] == "8"
    assert len({p.fingerprint for p in plans.values()}) == len(plans)


def test_a_suite_of_anothers_runs_has_that_suites_runs() -> None:
    owner, other = (plans_of(read_suite(f"suites/{name}.yaml"), Path("out"), {}) for name in ("mini-table1", "mini-table2"))
    assert owner == other


def test_what_a_suite_of_anothers_runs_says_itself_holds(tmp_path: Path) -> None:
    (tmp_path / "owner.yaml").write_text("title: x\nseeds: [1, 2]\nruns: {a: {method: no_cot}, b: {}}\nmain: a\n")
    (tmp_path / "part.yaml").write_text("title: y\nruns_of: owner\nseeds: [2]\n")
    suite = read_suite(tmp_path / "part.yaml")
    assert (suite.title, suite.seeds, list(suite.runs), suite.main) == ("y", [2], ["a", "b"], None)


def test_an_exception_holds_for_its_run_in_its_variant_alone(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(
        "title: x\nseeds: [1]\nvariants: {short: {latent.num_tokens: 3}, long: {latent.num_tokens: 3}}\n"
        "runs: {a: {latent.num_tokens: 4}, b: {}}\nexceptions: {long: {a: {latent.num_tokens: 5}}}\n"
    )
    suite = read_suite(tmp_path / "suite.yaml")

    def latents(overrides: dict[str, Any]) -> dict[tuple[str, str], str]:
        plans = plans_of(suite, Path("out"), overrides)
        return {cell: plan.train_flags[plan.train_flags.index("--latent.num_tokens") + 1] for cell, plan in plans.items()}

    assert latents({}) == {("short", "a"): "4", ("short", "b"): "3", ("long", "a"): "5", ("long", "b"): "3"}
    assert set(latents({"latent.num_tokens": 6}).values()) == {"6"}


def test_runs_of_a_suite_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("title: y\nruns_of: owner\n")
    with pytest.raises(UserError, match=r"owner\.yaml.*correct runs_of"):
        read_suite(tmp_path / "part.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: x\nruns: {a: {}}\n", "seeds"),
        ("title: x\nseeds: [1]\nrun: {a: {}}\nruns: {a: {}}\n", "did you mean 'runs'"),
        ("title: x\nseeds: []\nruns: {a: {}}\n", "seeds"),
        ("title: x\nseeds: [1, 1]\nruns: {a: {}}\n", "seeds: .*give each seed once"),
        ("title: x\nseeds: [-1]\nruns: {a: {}}\n", "seeds: .*none below 0"),
        ("title: x\nseeds: [1]\nruns: {a: {}}\nexceptions: {al: {a: {}}}\n", "'al' is not one of the variants; did you mean 'all'"),
        ("title: x\nseeds: [1]\nruns: {a: {}}\nexceptions: {all: {b: {}}}\n", "all: 'b' is not one of the runs"),
        ("- a\n", "mapping"),
    ],
)
def test_a_broken_suite_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_suite(path)


def test_data_sets_are_names_of_the_configuration_benchmarks_or_paths(tmp_path: Path) -> None:
    """Several seeds and suites take what `evaluate` takes."""
    known = {"gsm8k": "openai/gsm8k"}
    rows = tmp_path / "own rows.jsonl"
    rows.write_text("{}")
    assert choose_datasets([], known) == {"gsm8k": "gsm8k"}
    assert choose_datasets(["svamp-1000", str(rows)], known) == {"svamp-1000": "svamp-1000", "own-rows": str(rows)}
    with pytest.raises(UserError, match="data set 'svam-1000' is neither .* nor a benchmark or a path; did you mean 'svamp-1000'"):
        choose_datasets(["svam-1000"], known)
    with pytest.raises(UserError, match="data set 'gsm8k' is given twice"):
        choose_datasets(["gsm8k", "gsm8k"], known)


@pytest.mark.parametrize(
    "text",
    [
        "variants: {all: {loss: {alpha1_codi: 0, alpha2_kv: 7}}}\nruns: {a: {loss: {alpha2_kv: 3}}}",
        "variants: {all: {loss.alpha1_codi: 0}}\nruns: {a: {loss: {alpha2_kv: 3}}}",
        "variants: {all: {loss: {alpha1_codi: 0}}}\nruns: {a: {loss.alpha2_kv: 4}}\nexceptions: {all: {a: {loss: {alpha2_kv: 3}}}}",
    ],
)
def test_a_section_given_as_a_mapping_is_merged_setting_by_setting(tmp_path: Path, text: str) -> None:
    path = tmp_path / "nested.yaml"
    path.write_text(f"title: x\nseeds: [1]\n{text}\n")
    for overrides, kv in (({}, 3), ({"loss.alpha2_kv": 5}, 5), ({"loss": {"alpha2_kv": 5}}, 5)):
        (plan,) = plans_of(read_suite(path), Path("out"), overrides).values()
        config = load_config(plan.config, parse_overrides(plan.train_flags))
        assert (config.loss.alpha1_codi, config.loss.alpha2_kv) == (0, kv)
        assert config.fingerprint() == plan.fingerprint


def test_an_override_that_no_configuration_has_names_its_suite_and_run_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text("title: x\nseeds: [1]\nvariants: {long: {}}\nruns: {a: {}, b: {loss.alpha3: 1}}\n")
    with pytest.raises(UserError, match=r"^suite .*typo\.yaml, run long/b: .*mini\.yaml: unknown key 'loss\.alpha3'"):
        reproduce(path, Path("out"), {})


@pytest.mark.parametrize(("overrides", "option"), [({"method": "codi"}, "--runs"), ({"training.seed": 7}, "--seeds")])
def test_what_each_run_sets_itself_is_no_override(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any], option: str
) -> None:
    monkeypatch.setattr("kava.experiment.demo.resolve_base", lambda _: pytest.fail("the base model was made first"))
    for run in (partial(reproduce, suite_path("demo"), tmp_path, overrides, tables_only=True), partial(demo, tmp_path, False, overrides)):
        with pytest.raises(UserError, match=f"^--{next(iter(overrides))}: .* kava reproduce SUITE {option}$"):
            run()
    # Where no run has a method of its own, all may have another.
    plans = plans_of(chosen(read_suite("suites/mini-ablations.yaml"), [], [], ["alpha2_5"]), tmp_path, {"method": "codi"})
    assert {plan.settings.method for plan in plans.values()} == {"codi"}


def test_a_selection_leaves_the_whole_aggregate(tmp_path: Path) -> None:
    """`--seeds 42` or `--datasets test` of a finished suite makes a small table, and takes nothing from what format_results reads."""
    plan = plans_of(read_suite("suites/demo.yaml"), tmp_path, {})["all", "kava"]

    def group(seeds: Sequence[int], datasets: Sequence[str], correct: int = 700) -> Group:
        results = [{name: make_result(seed, name, correct, 1000) for name in datasets} for seed in seeds]
        return Group("kava", combine([SeedResults(str(seed), own) for seed, own in zip(seeds, results, strict=True)]))

    path = write_aggregate(plan, group([1, 2], ["test", "larger"]))
    for part in (group([1], ["test", "larger"]), group([1, 2], ["test"])):
        write_aggregate(plan, part)
        assert read_aggregates(path)[plan.name].num_seeds == 2
        assert set(read_aggregates(path)[plan.name].datasets) == {"test", "larger"}
    write_aggregate(plan, group([1, 2], ["test", "larger"], 800))
    assert read_aggregates(path)[plan.name].datasets["test"].accuracy_mean == 0.8
    write_aggregate(plan, group([1, 3], ["test"]))
    assert read_aggregates(path)[plan.name].seeds == [1, 3]


def test_a_variant_that_the_suite_lacks_is_one_line() -> None:
    with pytest.raises(UserError, match="no variant 'equations'; did you mean 'equation'"):
        reproduce(suite_path("mini-table1"), Path("out"), {}, variants=["equations"])


def test_only_the_runs_that_are_named_in_the_suites_order() -> None:
    part = chosen(read_suite("suites/mini-table1.yaml"), [], [], ["kava", "no_cot"])
    assert list(part.runs) == ["no_cot", "kava"]
    assert list(part.variants) == ["equation", "natural_language"]
    with pytest.raises(UserError, match="no run 'kave'; did you mean 'kava'"):
        chosen(part, [], [], ["kave"])
    table = read_suite("suites/smollm2-table1.yaml")
    assert chosen(table, [], [], []).datasets == table.datasets == ["gsm8k", "gsm8k-hard", "svamp", "multiarith"]
    assert chosen(table, [], [], [], ["svamp", "gsm8k"]).datasets == ["gsm8k", "svamp"]
    with pytest.raises(UserError, match="the suite has no data set 'svam'; did you mean 'svamp'"):
        chosen(table, [], [], [], ["svam"])


def test_a_quick_test_is_evaluated_as_its_checkpoint_says() -> None:
    """Fifty questions that the user asked for stay fifty."""
    plans = plans_of(read_suite("suites/demo.yaml"), Path("out"), {"evaluation.max_samples": 50}, short=True)
    for plan in plans.values():
        assert "--quick_test" in plan.train_flags
        assert "--quick_test" not in plan.evaluate_flags


@pytest.mark.parametrize(("groups", "code"), [({}, 1), ({"a": None}, 0)])
def test_several_seeds_of_which_nothing_came_are_no_success(
    groups: dict[str, Any], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("kava.experiment.progress_view.run_all", lambda plans, *_: seen.extend(plans.values()) or 0)
    monkeypatch.setattr("kava.experiment.collect.collect_all", lambda *_: groups)
    monkeypatch.setattr("kava.report.tables.result_tables", lambda *_: [])
    monkeypatch.setattr("kava.report.table.show", lambda *_: None)
    command = RunMultiSeed("mini", output_dir=str(tmp_path), report_to=("tensorboard", "trackio"))
    assert command.run() == code
    assert seen[0].train_flags[-3:] == ["--report_to", "tensorboard", "trackio"]


def test_a_misspelt_data_set_stops_before_anything_runs() -> None:
    suite = chosen(read_suite("suites/mini-table1.yaml"), [], [], [], ["tset"])
    with pytest.raises(UserError, match="data set 'tset' is neither .*; did you mean 'test'"):
        plans_of(suite, Path("out"), {})
    plans_of(suite.model_copy(update={"datasets": ["gsm8k"]}), Path("out"), {})


@pytest.mark.parametrize(("quick_test", "folder"), [(False, "mini-table1"), (True, "mini-table1_quick_test")])
def test_quick_runs_have_a_folder_of_their_own(quick_test: bool, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def run_all(plans: dict[Any, Any], *_: Any) -> int:
        seen.extend(plan.output_dir.relative_to(tmp_path) for plan in plans.values())
        raise UserError("enough")

    monkeypatch.setattr("kava.experiment.reproduce.run_all", run_all)
    with pytest.raises(UserError, match="enough"):
        reproduce(Path("suites/mini-table2.yaml"), tmp_path / "any", {}, quick_test=quick_test)
    assert {path.parts[0] for path in seen} == {folder}


def test_an_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'demo'"):
        suite_path("demmo")
