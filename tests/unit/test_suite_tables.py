"""The tables of a suite: accuracy by the number of steps, over seeds."""

from kava.experiment.suite_tables import steps_tables
from kava.experiment.summary import Cell, Key
from kava.results import Row, by_steps
from kava.statistics import summarise

NOTHING = summarise([1.0])


def cell(**shares: list[float]) -> Cell:
    found = {int(steps.removeprefix("steps")): summarise(values) for steps, values in shares.items()}
    return Cell(summarise([0.5]), (0.4, 0.6), NOTHING, NOTHING, NOTHING, None, {1: 0.5}, found)


def test_a_column_per_data_set_and_number_of_steps() -> None:
    cells: dict[Key, Cell] = {
        ("equation", "kava", "test"): cell(steps2=[1.0, 0.8], steps3=[0.2, 0.3]),
        ("equation", "kava", "svamp"): cell(),
        ("equation", "no_cot", "test"): cell(steps2=[0.25, 0.25]),
        ("natural", "kava", "svamp"): cell(),
    }
    ((title, header, rows),) = steps_tables("Title", cells)
    assert title == "Title: equation, by number of steps"
    assert header == ["method", "test, 2", "test, 3"]
    assert rows == [["kava", "90.0 (14.1)", "25.0 (7.1)"], ["no_cot", "25.0 (0.0)", "-"]]


def test_rows_by_steps_leave_out_those_that_have_none() -> None:
    common = {"question": "", "gold": "1", "prediction": None, "text": "", "correct": False, "forward_passes": 1, "generated_tokens": 1}
    rows = [Row(id=str(index), steps=steps, **common) for index, steps in enumerate((3, None, 2, 3))]
    assert {steps: [row.id for row in own] for steps, own in by_steps(rows).items()} == {2: ["2"], 3: ["0", "3"]}
    assert list(by_steps(rows)) == [2, 3]
