"""Runs on a terminal and elsewhere: a seed that cannot start, because its directory is in use."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from kava.config import Config
from kava.experiment.multi_seed import Plan
from kava.experiment.progress_view import run_all
from kava.runtime.lock import locked


@pytest.mark.parametrize("terminal", [True, False])
def test_what_went_wrong_stays_on_the_screen(terminal: bool, tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=200, color_system=None)
    plan = Plan("configs/mini.yaml", "kava", tmp_path, [3, 7], {"test": "builtin:mini/test"}, Config())
    for seed in plan.seeds:
        plan.seed_dir(seed).mkdir()
    with locked(plan.seed_dir(3)), locked(plan.seed_dir(7)):
        assert run_all({("all", "kava"): plan}, 2, console) == 1
    shown = stream.getvalue()
    for seed in (3, 7):
        assert f"kava seed {seed}: {plan.seed_dir(seed)} is in use by another run" in shown
    # The bars, which a terminal alone has.
    assert ("starting" in shown) == terminal
