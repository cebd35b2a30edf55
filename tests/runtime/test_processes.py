"""How processes belong together: an incomplete launch is one process, a runner's children get its signals and end with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.signals import listen
from kava.errors import UserError
from kava.experiment.child_processes import Children
from kava.experiment.multi_seed import SeedOutcome, exit_code, read_seeds
from kava.runtime import processes

SOURCE = str(Path(__file__).parents[2] / "src")
WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}


def launched_as(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a process with these of a launcher's variables, and no others."""
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "left_over",
    [{"LOCAL_RANK": "0"}, {"RANK": ""}, {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""}, {"RANK": "0", "WORLD_SIZE": "2"},
     {**WHOLE, "RANK": "x"}, {**WHOLE, "RANK": "2"}, {**WHOLE, "WORLD_SIZE": "-1"}],
)  # fmt: skip
def test_half_a_launch_is_no_launch(left_over: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    launched_as(left_over, monkeypatch)
    processes.drop_incomplete_launch()
    assert not {*WHOLE} & os.environ.keys()
    assert (processes.rank(), processes.world_size(), processes.local_rank()) == (0, 1, 0)
    said = capsys.readouterr().err
    assert said.startswith(
        f"kava: incomplete launch ({', '.join(name for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK') if name in left_over)} "
    )
    assert said.count("\n") == 1


@pytest.mark.parametrize("launch", [{}, WHOLE, {"MASTER_ADDR": "node1"}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}])
def test_a_whole_launch_and_none_stay(launch: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    launched_as(launch, monkeypatch)
    processes.drop_incomplete_launch()
    assert {name: os.environ[name] for name in WHOLE if name in os.environ} == launch
    assert capsys.readouterr().err == ""


def test_nohup_is_obeyed() -> None:
    both = [signal.SIGINT, signal.SIGHUP]
    # Whatever these tests were started under.
    before = {number: signal.signal(number, signal.default_int_handler) for number in both}
    try:
        assert processes.signals_to_handle(both) == both
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert processes.signals_to_handle(both) == [signal.SIGINT]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Writes the signal that it was told to end by.
CHILD = """
import signal, sys, time
from kava.runtime.processes import end_with_parent
def end(number, frame):
    open(sys.argv[1], "w").write(signal.Signals(number).name)
    sys.exit(0)
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, end)
end_with_parent()
open(sys.argv[2], "w").close()
time.sleep(60)
"""
# Two children from threads, as `run_plans` starts them.
RUNNER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from kava.experiment.child_processes import Children
place, children = Path(sys.argv[1]), Children()
def one(index):
    children.run([sys.executable, "-c", sys.argv[2], f"{place}/end{index}", f"{place}/ready{index}"], place / f"log{index}", {})
with children.passing_signals(), ThreadPoolExecutor(2) as pool:
    list(pool.map(one, range(2)))
"""


@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGHUP, "SIGHUP"), (signal.SIGINT, "SIGINT"), (signal.SIGKILL, "SIGTERM")], ids=lambda value: str(value)
)
def test_children_end_with_their_runner_however_it_goes(tmp_path: Path, number: signal.Signals, told: str) -> None:
    words = [sys.executable, "-c", RUNNER, str(tmp_path), CHILD]
    runner = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": SOURCE}, preexec_fn=listen)
    await_files(tmp_path / "ready0", tmp_path / "ready1")
    runner.send_signal(number)
    runner.wait(timeout=60)
    await_files(tmp_path / "end0", tmp_path / "end1")
    time.sleep(0.05)
    assert {(tmp_path / f"end{index}").read_text() for index in range(2)} == {told}


def await_files(*paths: Path) -> None:
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_progress_is_shown_while_a_child_runs(tmp_path: Path) -> None:
    """Its newest line, each once; nothing of what else it says."""
    lines = ["kava: a note", "mini seed 1: step 1/9  loss 2", "mini seed 1: step 2/9  loss 1", "other"]
    script = f"import time; print({chr(10).join(lines)!r}, flush=True); time.sleep(0.5)"
    shown: list[str] = []
    log = tmp_path / "run.log"
    log.write_text("mini seed 1: step 9/9  of an older run\n")
    finished = Children().run([sys.executable, "-c", script], log, {}, watch=shown.append, every=0.05)
    assert finished.returncode == 0
    assert shown == ["mini seed 1: step 2/9  loss 1"]


def test_seeds_are_read_as_they_are_typed() -> None:
    assert read_seeds(["42", "123", "456"]) == read_seeds(["42,123,456"]) == read_seeds(["42, 123", "456"]) == [42, 123, 456]
    for words in (["1", "1"], ["1,1"], ["-1"], ["x"], ["1.5"]):
        with pytest.raises(UserError, match=rf"--seeds {' '.join(words)}: give whole numbers .* each once and not negative"):
            read_seeds(words)


def test_every_command_that_runs_children_ends_with_the_same_code() -> None:
    done, failed = SeedOutcome(1, Path("a")), SeedOutcome(2, Path("b"), problem="train: exit code 2", returncode=2)
    saved, killed = SeedOutcome(3, Path("c"), problem="x", returncode=85), SeedOutcome(4, Path("d"), problem="x", returncode=-15)
    assert exit_code([done], None) == 0
    assert exit_code([done, failed], None) == 1
    assert exit_code([done, saved, killed], signal.SIGUSR1) == 85
    assert exit_code([done, killed], signal.SIGTERM) == 143
