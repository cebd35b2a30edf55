"""Tables: the same rows for every form; accuracy by the number of steps over seeds; a narrow terminal cuts nothing."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from helpers.result_files import make_result, make_row
from kava.report.aggregate import SeedResults, combine
from kava.report.group import Group
from kava.report.reference import load_reference
from kava.report.steps import step_rows
from kava.report.table import Cell, Table, as_markdown, share, show, signed, without_constants
from kava.report.tables import accuracy_table, relevant, result_tables, steps_table
from kava.results import Row, by_steps


def group(path: str = "run", seeds: tuple[int, ...] = (1, 2, 3), **changes: Any) -> Group:
    runs = [SeedResults(f"{path}/{seed}", {"gsm8k": make_result(seed, correct=700 + seed, **changes)}) for seed in seeds]
    return Group(path, combine(runs))


def printed(tables: list[Table], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(tables, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def answers(**right: int) -> list[Row]:
    """Forty questions of each length, so many of them answered right: steps2=8."""
    return [
        make_row(number=40 * int(name[-1]) + index, steps=int(name[-1]), correct=index < count, confidence=0.5)
        for name, count in right.items()
        for index in range(40)
    ]


def test_accuracy_by_steps_is_over_seeds() -> None:
    two, three = step_rows({1: answers(steps2=40, steps3=8), 2: answers(steps2=32, steps3=12)})
    assert (two.steps, two.questions, two.accuracy, two.confidence) == (2, 40, pytest.approx(0.9), 0.5)
    assert two.std == pytest.approx(0.02**0.5)
    half = 12.706204736 * 0.1  # t with one degree of freedom, times the standard error
    assert two.interval == (0.0, 1.0)
    assert (three.accuracy, three.interval) == (pytest.approx(0.25), (0.0, pytest.approx(0.25 + half / 2)))
    table = steps_table({("test", ""): {"kava": [two, three]}}, load_reference())
    assert table.columns == ["Method", "Steps", "Questions", "Accuracy, %", "Confidence, %", "Confidence - accuracy"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["kava", "2", "40", "90.0 (14.1)", "50.0", "-40.0"], ["kava", "3", "40", "25.0 (7.1)", "50.0", "+25.0"],
    ]  # fmt: skip
    assert "Test set: test." in table.caption


def test_rows_by_steps_leave_out_those_that_have_none() -> None:
    rows = [make_row(index, steps=steps) for index, steps in enumerate((3, None, 2, 3))]
    assert {steps: [row.id for row in own] for steps, own in by_steps(rows).items()} == {2: ["2"], 3: ["0", "3"]}
    assert list(by_steps(rows)) == [2, 3]


def test_no_heading_and_no_number_is_cut_on_a_narrow_terminal() -> None:
    names = ["method", *(f"benchmark_{index}" for index in range(6)), "forward passes"]
    rows = [[Cell(f"run_{row}_with_a_long_name"), *[Cell("99.9 (10.1)", 99.9, "[98.9, 100.0]")] * 7] for row in range(3)]
    text = printed([Table("x", "Title", "Caption", names, rows)])
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for name in names:
        assert all(word in text.split() for word in name.split())
    assert text.count("99.9 (10.1)") == text.count("[98.9, 100.0]") == 3 * 7
    # The interval stands below its number.
    lines = text.splitlines()
    number = next(index for index, line in enumerate(lines) if "99.9 (10.1)" in line)
    assert "[98.9, 100.0]" in lines[number + 1]
    wide = printed([Table("x", "Title", "Caption", names, rows)], width=200)
    assert wide.count("run_0_with_a_long_name") == 1 < text.count("run_0_with_a_long_name")


def test_a_table_has_the_same_numbers_in_every_form() -> None:
    reference = load_reference()
    groups = [group("first"), group("second", overrides={"method": "pccot"})]
    labelled = [(own, reference.method_label(own.aggregate.method)) for own in groups]
    table = accuracy_table(labelled, reference, relevant(labelled, reference))
    assert table.columns == ["Method", "GSM8k", "GSM8k-Hard", "SVAMP", "Model", "Training data", "Source"]
    assert [row[0].text for row in table.rows[:2]] == ["KaVa", "PCCoT"]
    numbers = [cell.text for row in table.rows for cell in row if cell.value is not None]
    for form in (printed([table]), as_markdown(table)):
        assert [number for number in numbers if number not in form] == []
        assert "[1] ours: first, 3 seeds" in form
        assert "arXiv 2510.02312, Table 1" in form


def test_a_difference_has_a_sign_and_zero_no_minus() -> None:
    assert [signed(points).text for points in (2.06, -2.06, -0.04, 0.0)] == ["+2.1", "-2.1", "+0.0", "+0.0"]
    assert [share(fraction).text for fraction in (0.565, 0.0, None)] == ["56.5", "0.0", "--"]


def test_what_is_the_same_in_every_row_stands_in_the_caption() -> None:
    accuracy, efficiency = result_tables([(group(), "KaVa")], load_reference())
    assert accuracy.columns == ["Method", "GSM8k"]
    assert "Model: LLaMA-3.2-1B. Training data: GSM8k-AUG (equation). Source: ours: run, 3 seeds." in accuracy.caption
    assert efficiency.columns == ["Method", "Forward passes", "Tokens", "Milliseconds", "Cache, KiB"]
    empty = Table("x", "", "", ["Method", "Source"], [])
    assert without_constants(empty, ("Source",)) == empty


def test_parts_of_test_sets_and_changed_training_data_are_said_below() -> None:
    part = group("part", seeds=(1,), total=800, overrides={"evaluation.max_samples": 800})
    same, changed = (Group(path, own.aggregate.model_copy(update={"trained_on": path})) for path in ("a", "b") for own in [group(path)])
    table = accuracy_table([(part, "KaVa"), (same, "KaVa"), (changed, "KaVa")], load_reference())
    assert [row[1].text for row in table.rows] == ["87.6‡", "53.2 (0.1)", "53.2 (0.1)"]
    assert table.notes[:2] == [
        "‡ not a full evaluation: first 800 questions.", "Not all rows were trained on the same content of GSM8k-AUG (a, b).",
    ]  # fmt: skip


def test_markdown_keeps_its_columns_whatever_a_cell_holds() -> None:
    lines = as_markdown(Table("x", "T", "c", ["a", "b"], [[Cell("x | y"), Cell("two\nlines")]])).splitlines()
    (row,) = (line for line in lines if "two" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
