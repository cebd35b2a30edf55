"""The chain as a user types it, on the mini experiment cut down: train, resume, evaluate, ask."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.forked_python import python

REPOSITORY = Path(__file__).parents[2]
TINY = [
    "--model.mini.pretrain_steps", "5", "--model.mini.hidden_size", "32", "--model.mini.num_layers", "2", "--dataset.mini.num_train", "400",
    "--dataset.mini.num_eval", "40", "--training.max_steps", "8", "--training.eval_steps", "4", "--training.save_steps", "4",
    "--training.batch_size", "8", "--evaluation.validation_samples", "16",
    "--latent.num_tokens", "4", "--latent.num_iterations", "3", "--evaluation.max_new_tokens", "8",
]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return os.environ | {"KAVA_CACHE": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "src")}


def run(environment: dict[str, str], *words: str, code: int = 0, text: str | None = None, program: str | None = None) -> str:
    done = subprocess.run(
        [program or python(), *words], cwd=REPOSITORY, env=environment, input=text, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "kava"
    words = ["train.py", "--config", "configs/mini.yaml", "--output_dir", str(directory), "--seed", "7", *TINY]
    run(environment, *words, program=sys.executable)
    return directory


def test_training_leaves_what_the_guide_says(trained: Path) -> None:
    for name in (
        "best_checkpoint/projection.safetensors",
        "best_checkpoint/kava_config.json",
        "checkpoint-4",
        "checkpoint-8",
        "train.log",
        "logs",
    ):
        assert (trained / name).exists(), name
    assert json.loads((trained / "training_done.json").read_text())["steps"] == 8
    assert list((trained / "logs").glob("events.out.tfevents*"))


def test_a_test_set_that_is_not_at_hand_does_not_undo_a_quick_test(environment: dict[str, str], tmp_path: Path) -> None:
    words = ["train.py", "--config", "configs/mini.yaml", "--output_dir", str(tmp_path), "--quick_test", *TINY]
    said = run(environment, *words, "--evaluation.datasets", '{"svamp": "/nowhere/svamp.json"}')
    assert "trained 8 steps" in said
    assert "not evaluated on svamp: " in said
    assert "/nowhere/svamp.json" in said
    assert (tmp_path / "best_checkpoint").is_dir()


def test_a_finished_run_is_not_trained_again(environment: dict[str, str], trained: Path) -> None:
    before = (trained / "train.log").read_text()
    run(environment, "train.py", "--config", "mini", "--output_dir", str(trained), "--seed", "7", "--resume", *TINY)
    assert (trained / "train.log").read_text() == before


def test_another_configuration_is_not_resumed_over_it(environment: dict[str, str], trained: Path) -> None:
    words = ["train.py", "--config", "mini", "--output_dir", str(trained), "--seed", "7", "--resume", *TINY, "--loss.alpha2_kv", "3"]
    assert "another configuration" in run(environment, *words, code=2)


def test_evaluation_in_both_spellings_gives_the_same(environment: dict[str, str], trained: Path, tmp_path: Path) -> None:
    import yaml

    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    run(environment, "evaluate.py", "--checkpoint_dir", str(trained / "best_checkpoint"), "--eval_dataset", "test", "--output", str(first))
    run(environment, "evaluate.py", "--checkpoint", str(trained), "--dataset", "test", "--output", str(second), "--batch_size", "3")
    a, b = (yaml.safe_load(path.read_text()) for path in (first, second))
    for key in ("accuracy", "correct", "total", "forward_passes", "generated_tokens"):
        assert a["metrics"][key] == b["metrics"][key]
    rows = [json.loads(line) for line in first.with_suffix(".jsonl").read_text().splitlines()]
    assert len(rows) == a["metrics"]["total"] == 40
    assert sum(row["correct"] for row in rows) == a["metrics"]["correct"]
    # One pass for the question, T = 3 iterations, one for the fixed text, then one per token that is fed back.
    assert all(row["forward_passes"] == 5 + row["generated_tokens"] - 1 for row in rows)


def test_a_session_answers_and_leaves_cleanly(environment: dict[str, str], trained: Path) -> None:
    typed = "/trace\nTom has 2 apples at first . How many apples does Tom have ?\n/trace\n/latent off\n/temp x\n/temp 0.5\n/nonsense\n"
    shown = run(environment, "inference.py", "--checkpoint", str(trained), "--mode", "interactive", text=typed)
    for expected in (
        "ask a question first",
        "answer:",
        "forward passes",
        "prefill",
        "latent reasoning off",
        "/temp needs",
        "unknown command",
        "bye",
    ):
        assert expected in shown, expected


def asleep(process: int) -> bool:
    """Whether a process waits for something, as the kernel has it."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "S"


@pytest.mark.parametrize("inherited", [signal.SIG_DFL, signal.SIG_IGN], ids=["listening", "ignored"])
def test_in_a_terminal_earlier_lines_come_back_and_ctrl_c_leaves_cleanly(
    environment: dict[str, str], trained: Path, inherited: signal.Handlers
) -> None:
    """A shell starts background jobs (`nohup make test &`) with SIGINT ignored, and that is inherited."""
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGINT, inherited)
        words = [sys.executable, str(REPOSITORY / "inference.py"), "--checkpoint", str(trained), "--mode", "interactive"]
        os.execve(sys.executable, words, environment | {"TERM": "xterm"})
    shown = ""
    dialogue = (
        ("", "question> ", 1),
        ("How many ?\r", "answer: ", 1),
        ("", "question> ", 2),
        ("\x1b[A", "How many ?", 2),
        ("\r", "answer: ", 2),
        ("", "question> ", 3),
        ("\x03", "bye", 1),
    )
    for keys, expected, times in dialogue:
        # Nobody presses a key in the microseconds between a prompt and the wait behind it.
        while keys and not asleep(process):
            time.sleep(0.01)
        os.write(terminal, keys.encode())
        while shown.count(expected) < times:
            assert select.select([terminal], [], [], 120)[0], shown
            shown += os.read(terminal, 4096).decode(errors="replace")
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    os.close(terminal)


def test_a_checkpoint_is_not_read_with_another_configuration(environment: dict[str, str], trained: Path) -> None:
    words = ["inference.py", "--checkpoint", str(trained), "--config", "configs/llama1b_aug.yaml", "--mode", "batch", "--questions", "x"]
    assert "the checkpoint was trained with model.name" in run(environment, *words, code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate.py", "--checkpoint", "nowhere", "--dataset", "test"], "is not a checkpoint"),
        (["train.py", "--config", "llama1b_agu"], "did you mean 'llama1b_aug'"),
        (["train.py", "--config", "mini", "--training.bach_size", "3"], "did you mean '--training.batch_size'"),
    ],
)
def test_a_mistake_is_one_line(environment: dict[str, str], words: list[str], message: str) -> None:
    shown = run(environment, *words, code=2)
    assert message in shown
    assert len([line for line in shown.splitlines() if line.startswith("kava:")]) == 1
