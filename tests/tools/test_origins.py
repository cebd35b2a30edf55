"""Where the numbers in a file come from: every setting of its run, what seeds share once, measurements left out."""

from pathlib import Path

import pytest

from helpers.result_files import make_result
from kava.config.differences import flatten
from kava.errors import UserError
from kava.report.aggregate import SeedResults, combine
from kava.report.aggregate_file import write_aggregates
from kava.report.table import Table
from kava.results import write_result
from kava.tools.bench.record import write_bench
from kava.tools.origins import origin_tables


def content(tables: list[Table]) -> dict[str, dict[str, str]]:
    """Title -> key -> value as shown."""
    return {table.title: {row[0].text: row[1].text for row in table.rows} for table in tables}


def aggregated(place: Path, *seeds: int) -> Path:
    path = place / "aggregated_results.yaml"
    runs = [SeedResults(f"out/seed_{seed}", {"gsm8k": make_result(seed, correct=700 + seed)}) for seed in seeds]
    write_aggregates({"llama1b_aug": combine(runs)}, place / "aggregated_results.json", path)
    return path


def test_a_result_shows_every_setting_of_its_run(tmp_path: Path) -> None:
    result = make_result(7)
    write_result(tmp_path / "results_gsm8k.yaml", result)
    shown = content(origin_tables(tmp_path / "results_gsm8k.yaml"))
    assert {"file", "metrics", "run", "data", "provenance"} <= shown.keys()
    assert {key for key in shown["run"] if key.startswith("config.")} == {f"config.{key}" for key in flatten(result.run.config)}
    assert (shown["run"]["seed"], shown["file"]["dataset"], shown["provenance"]["commit"]) == ("7", "gsm8k", "0123abc")


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_an_aggregate_shows_once_what_its_seeds_share(tmp_path: Path, ending: str) -> None:
    path = aggregated(tmp_path, 1, 2).with_suffix(f".{ending}")
    shown = content(origin_tables(path))
    assert list(shown) == ["llama1b_aug", "llama1b_aug, every seed", "llama1b_aug, seed 1", "llama1b_aug, seed 2"]
    assert shown["llama1b_aug, seed 1"] == {"seed": "1", "directory": "out/seed_1"}
    assert shown["llama1b_aug, every seed"]["provenance.commit"] == "0123abc"
    assert shown["llama1b_aug"]["datasets.gsm8k.per_seed_accuracy"] == f"[{701 / 1319}, {702 / 1319}]"
    assert not any(key.startswith("config.") for key in shown["llama1b_aug"])
    everything = content(origin_tables(path, settings=True))["llama1b_aug"]
    assert everything["config.training.learning_rate"] == "0.0008"
    assert "config.training.seed" not in everything


def test_one_seed_has_no_table_of_its_own(tmp_path: Path) -> None:
    assert [table.title for table in origin_tables(aggregated(tmp_path, 5))] == ["llama1b_aug", "llama1b_aug, every seed"]


def test_a_benchmark_shows_its_settings_and_not_its_measurements(tmp_path: Path) -> None:
    write_bench(tmp_path / "bench.json", {"batch": 3}, {"step": 0.5}, {"step": [1.0] * 1000})
    shown = content(origin_tables(tmp_path / "bench.json"))
    assert shown["settings"] == {"batch": "3"}
    assert shown["ratios"] == {"step": "0.5"}
    assert "measured" not in shown


@pytest.mark.parametrize("text", ["a: 1\n", "format: kava.other/1\n", "format: [kava.results/1]\n", "x: {format: kava.results/1}\n"])
def test_any_other_file_is_refused_by_its_format(tmp_path: Path, text: str) -> None:
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(UserError, match=r"file\.yaml is neither a result, .* 'format' is "):
        origin_tables(tmp_path / "file.yaml")


def test_a_broken_file_and_a_directory_without_a_checkpoint_are_one_line(tmp_path: Path) -> None:
    write_result(tmp_path / "results.yaml", make_result())
    text = (tmp_path / "results.yaml").read_text()
    (tmp_path / "results.yaml").write_text(text.replace("accuracy:", "exactness:"))
    with pytest.raises(UserError, match=r"results\.yaml is broken"):
        origin_tables(tmp_path / "results.yaml")
    with pytest.raises(UserError, match=r"kava_config\.json does not exist"):
        origin_tables(tmp_path)
