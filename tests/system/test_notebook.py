"""The tour runs from its first cell to its last, shows what it promises, and is kept as it ran."""

import re
from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

REPOSITORY = Path(__file__).parents[2]
TOUR = REPOSITORY / "notebooks" / "tour.ipynb"


def written(notebook: Any) -> str:
    return "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))


def accuracy(notebook: Any) -> float:
    """The lower end of its interval, in percent."""
    return float(re.search(r"95 % interval ([\d.]+) to", written(notebook)).group(1))  # type: ignore[union-attr]


def pictures(notebook: Any) -> int:
    return sum("image/png" in out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", []))


def test_the_tour_is_kept_with_outputs_above_chance() -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert accuracy(notebook) > 90
    assert pictures(notebook) == 4
    assert not re.search(r"/(tmp|home|root|work)/", TOUR.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "KAVA_TOUR_QUESTIONS": "40", "KAVA_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY / "src"),
        "OMP_NUM_THREADS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(TOUR, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert accuracy(notebook) > 60
    assert pictures(notebook) == 4
    assert len(list(tmp_path.glob("kava_tour_*/report.html"))) == 1
