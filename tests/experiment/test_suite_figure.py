"""The figure of a suite: every run on every data set, its interval and its seeds, the same bytes for the same numbers."""

from pathlib import Path
from typing import Any

from helpers.result_files import make_result
from kava.experiment.suite_figure import accuracy_figure, write_figure
from kava.report.aggregate import SeedResults, combine
from kava.report.group import Group


def group(*accuracies: float, datasets: tuple[str, ...] = ("test",)) -> Group:
    runs = [
        SeedResults(str(seed), {name: make_result(seed, name, round(1000 * accuracy), 1000) for name in datasets})
        for seed, accuracy in enumerate(accuracies)
    ]
    return Group("suite", combine(runs))


GROUPS = {
    (variant, run): group(0.2 + shift, 0.3 + shift, 0.25 + shift, datasets=("test", "larger"))
    for variant, shift in (("equation", 0.0), ("natural_language", 0.1))
    for run in ("no_cot", "kava")
}


def test_a_panel_per_data_set_and_a_point_per_run_and_variant() -> None:
    panels = accuracy_figure(GROUPS).axes
    assert [panel.get_title() for panel in panels] == ["test", "larger"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["no_cot", "kava"]
    for panel in panels:
        bars: Any = panel.containers
        means = sorted(float(container.lines[0].get_xdata()[0]) for container in bars)
        assert [round(mean, 6) for mean in means] == [25, 25, 35, 35]


def test_a_variant_without_the_first_run_is_in_the_legend() -> None:
    groups = {key: group for key, group in GROUPS.items() if key != ("natural_language", "no_cot")}
    (legend,) = accuracy_figure(groups).legends
    assert [text.get_text() for text in legend.get_texts()] == ["equation", "natural_language"]


def test_an_interval_beyond_what_an_accuracy_can_be_is_cut() -> None:
    (panel,) = accuracy_figure({("all", "kava"): group(0.9, 0.99, 0.8)}).axes
    bars: Any = panel.containers[0]
    (lines,) = bars.lines[2]
    low, high = lines.get_segments()[0][:, 0]
    assert 0 <= low < 90
    assert high == 100


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        write_figure(tmp_path / name, GROUPS)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
