"""Child processes of a suite: which GPUs and how many threads each may use, their logs, and signals."""

import os
import signal
import sys

import pytest

from kava.experiment.child_processes import Children, StoppedError, environments, visible_gpus


@pytest.mark.parametrize(
    ("variable", "gpus"),
    [("", []), ("-1", []), ("0", ["0"]), ("2, 3", ["2", "3"]), ("1,-1,2", ["1"]), ("GPU-8f,GPU-2a", ["GPU-8f", "GPU-2a"])],
)
def test_gpus_are_those_that_cuda_sees(monkeypatch: pytest.MonkeyPatch, variable: str, gpus: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == gpus


def test_each_child_gets_a_gpu_in_turn_or_its_share_of_the_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environments(1, ["0", "1"], 8) == [{}]
    assert environments(3, [], 8) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments(3, ["2", "GPU-b"], 8)] == ["2", "GPU-b", "2"]
    assert environments(2, ["0"], 2) == [{"OMP_NUM_THREADS": "1"}] * 2
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert environments(2, [], 8) == [{}, {}]


def test_children_log_their_command_their_end_and_keep_older_logs(tmp_path):
    log = tmp_path / "run.log"
    children = Children()
    script = "import sys; print('\\n'.join(map(str, range(100)))); print('last words', file=sys.stderr); sys.exit(3)"
    finished = children.run([sys.executable, "-c", script], log, {})
    assert (finished.returncode, finished.reason) == (3, "exit code 3")
    assert finished.tail.splitlines()[-2:] == ["99", "last words"]
    assert len(finished.tail.splitlines()) == 15
    killed = children.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], log, {})
    assert (killed.reason, killed.tail) == ("killed by signal 9", "")
    assert log.read_text().count(sys.executable) == 2


@pytest.mark.timeout(10)
def test_a_second_signal_while_the_first_is_passed_on():
    """As Slurm sends them: USR1, then TERM."""
    passed_on = []

    class Child:
        def send_signal(self, number):
            passed_on.append(number)
            if number == signal.SIGUSR1:
                signal.raise_signal(signal.SIGTERM)

    children = Children()
    children._running.add(Child())
    with children.passing_signals():
        signal.raise_signal(signal.SIGUSR1)
    assert passed_on == [signal.SIGUSR1, signal.SIGTERM]
    assert children.stop_signal == signal.SIGTERM


def test_no_child_starts_after_a_signal(tmp_path):
    children = Children()
    with children.passing_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedError):
            children.run([sys.executable, "-c", "print(1)"], tmp_path / "run.log", {})
    assert children.stop_signal == signal.SIGTERM
