"""A run that is killed at any moment and resumed ends as one that was not: same weights, same states, same logged numbers, bit for bit."""

import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.faulty_runs import ForkServer, assert_same_ending, ending, newest
from kava.runtime.atomic import verify
from kava.train.resume import checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.faults]

KAVA: list[str] = []
# A stage of its own every three steps, in the middle of epochs, with batches that worker processes read.
ICOT = ["--method", "icot", "--training.tokens_per_stage", "5", "--training.epochs_per_stage", "0.6", "--training.num_workers", "2"]
BY_EPOCH = ["--training.eval_steps", "null", "--training.save_steps", "null", "--training.sort_by_length", "false"]
KILLS = {
    "kava": (KAVA, {"disk": 6, "evaluation": 3, "clock": 4}),
    "icot": (ICOT, {"disk": 2, "evaluation": 1, "clock": 2}),
    "by_epoch": (BY_EPOCH, {"disk": 1, "evaluation": 1, "clock": 1}),
}


class Lab:
    """The fork server, and one undisturbed run of each kind."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = ForkServer(directory / "cache")
        self.references: dict[str, tuple[dict[str, Any], dict[str, int], float, list[str]]] = {}

    def reference(self, name: str, words: list[str]) -> tuple[dict[str, Any], dict[str, int], float, list[str]]:
        """How an undisturbed run ends, how many events of each kind it had, how long it took, and which files it left."""
        if name not in self.references:
            run, counts = self.directory / f"{name}_reference", self.directory / f"{name}.json"
            if not self.references:
                self.server.train(self.directory / "warm")  # makes the pretrained base, which the others share
            answer = self.server.train(run, *words, counts=str(counts))
            self.references[name] = (ending(run), json.loads(counts.read_text()), answer["seconds"], names(run))
        return self.references[name]

    def copy(self, name: str, to: str) -> Path:
        return shutil.copytree(self.directory / f"{name}_reference", self.directory / to)


def names(run: Path) -> list[str]:
    """What lies in a run's directory, but for the event files of TensorBoard."""
    return sorted(path.name for path in run.iterdir())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("faults"))
    yield lab
    lab.server.close()


@pytest.mark.parametrize("name", KILLS)
def test_kills_at_random_points_change_nothing(lab: Lab, name: str) -> None:
    """21 kills in all: at calls that write, move or delete files, between tokens of a validation, and by the clock."""
    words, wanted = KILLS[name]
    expected, counts, seconds, files = lab.reference(name, words)
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed of the kills: {seed}")
    rng = random.Random(seed)
    plan = [kind for kind, count in wanted.items() for _ in range(count)]
    rng.shuffle(plan)
    killed: Counter[str] = Counter()
    attempts, run = 0, lab.directory / f"{name}_killed_0"
    while plan:
        attempts += 1
        assert attempts < 100, killed
        kind = plan[-1]
        request = {"kill_after": rng.uniform(0.05, seconds)} if kind == "clock" else {"fault": [kind, rng.randint(1, counts[kind] // 2)]}
        answer = lab.server.train(run, "--resume", *words, code=None, **request)
        assert answer["code"] in (0, -9), answer
        for checkpoint in [*checkpoints(run), *run.glob("best_checkpoint")]:
            assert verify(checkpoint) is None, (checkpoint, request)
        if answer["code"] == -9:
            killed[plan.pop()] += 1
        else:
            # It was through before the kill came.
            assert_same_ending(run, expected)
            run = lab.directory / f"{name}_killed_{attempts}"
    lab.server.train(run, "--resume", *words)
    assert_same_ending(run, expected)
    assert names(run) == files
    assert killed == wanted
    assert sum(sum(kinds.values()) for _, kinds in KILLS.values()) >= 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are read from /proc")
def test_a_worker_that_is_killed_ends_the_run_in_a_sentence(lab: Lab) -> None:
    """As the kernel does when memory runs out."""
    expected, *_ = lab.reference("kava", KAVA)
    run = lab.directory / "dead_worker"
    log = run.with_suffix(".log")
    words = [*KAVA, "--training.num_workers", "2"]
    lab.server.train(run, *words, code=2, kill_worker=True)
    assert "a process that builds batches died (DataLoader worker" in log.read_text()
    lab.server.train(run, "--resume", *words)
    assert_same_ending(run, expected)


def test_killed_after_the_last_checkpoint_it_takes_no_further_step(lab: Lab) -> None:
    expected, *_ = lab.reference("kava", KAVA)
    run = lab.copy("kava", "last_moment")
    (run / "training_done.json").unlink()
    lab.server.train(run, "--resume")
    assert_same_ending(run, expected)


@pytest.mark.parametrize(
    ("number", "code", "step"), [(10, 85, 4), (15, 143, 7), (2, 130, 8), (1, 129, 5)], ids=["SIGUSR1", "SIGTERM", "SIGINT", "SIGHUP"]
)
def test_a_signal_finishes_the_step_saves_and_leaves_with_its_code(lab: Lab, number: int, code: int, step: int) -> None:
    """After steps 4 and 8 a validation is due: it waits for the resume."""
    expected, *_ = lab.reference("kava", KAVA)
    run = lab.directory / f"signal_{number}_{step}"
    # Two batches of backward passes per step: the signal comes in the first.
    lab.server.train(run, fault=["backward", 2 * step - 1, number], code=code)
    assert newest(run).name == f"checkpoint-{step}"
    assert verify(newest(run)) is None
    assert not (run / "training_done.json").exists()
    history = json.loads((newest(run) / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_accuracy" in entry] == [4][: step // 5]
    lab.server.train(run, "--resume")
    assert_same_ending(run, expected)


def test_a_signal_in_the_last_step_leaves_the_validation_to_the_resume(lab: Lab) -> None:
    expected, *_ = lab.reference("kava", KAVA)
    run = lab.directory / "signal_last"
    lab.server.train(run, fault=["backward", 21, 15], code=143)
    assert newest(run).name == "checkpoint-11"
    lab.server.train(run, "--resume")
    assert_same_ending(run, expected)


def test_a_signal_in_a_validation_cuts_it_off_and_the_resume_runs_it(lab: Lab) -> None:
    """In the first one, after step 4, and in the same one again."""
    expected, *_ = lab.reference("kava", KAVA)
    run = lab.directory / "signal_validation"
    lab.server.train(run, fault=["evaluation", 2, 10], code=85)
    lab.server.train(run, "--resume", fault=["evaluation", 2, 15], code=143)
    assert newest(run).name == "checkpoint-4"
    assert not (run / "best_checkpoint").exists()
    lab.server.train(run, "--resume")
    assert_same_ending(run, expected)


@pytest.mark.parametrize("damage", ["cut", "flipped", "half copied", "empty"])
def test_a_damaged_checkpoint_is_named_and_an_older_one_taken(lab: Lab, damage: str) -> None:
    expected, *_ = lab.reference("kava", KAVA)
    run = lab.copy("kava", f"damaged_{damage.replace(' ', '_')}")
    (run / "training_done.json").unlink()
    last = newest(run)
    weights = last / "adapter_model.safetensors"
    content = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        weights.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    elif damage == "half copied":
        for path in sorted(last.iterdir())[::2]:
            path.unlink()
    else:
        shutil.rmtree(last)
        last.mkdir()
    lab.server.train(run, "--resume")
    text = run.with_suffix(".log").read_text()
    assert f"kava: checkpoint {last} is damaged (" in text
    assert text.count("is damaged (") == 1
    assert_same_ending(run, expected)


def test_without_any_good_checkpoint_it_starts_again(lab: Lab) -> None:
    expected, *_ = lab.reference("kava", KAVA)
    run = lab.copy("kava", "all_damaged")
    (run / "training_done.json").unlink()
    for checkpoint in checkpoints(run):
        (checkpoint / "optimizer.pt").unlink()
    lab.server.train(run, "--resume")
    assert "has no undamaged checkpoint; starting from the beginning" in run.with_suffix(".log").read_text()
    assert_same_ending(run, expected)


def test_the_limit_on_checkpoints_never_takes_the_best(lab: Lab) -> None:
    """At this learning rate nothing changes, so that the first validation stays the best; of the others the newest is kept."""
    run = lab.directory / "limited"
    flags = {"learning_rate": "1e-12", "eval_steps": "2", "save_steps": "2", "save_total_limit": "1"}
    lab.server.train(run, *(word for key, value in flags.items() for word in (f"--training.{key}", value)))
    assert [checkpoint.name for checkpoint in checkpoints(run)] == ["checkpoint-11"]
    best = run / "best_checkpoint"
    assert verify(best) is None
    assert json.loads((best / "kava_config.json").read_text())["step"] == 2
    state = json.loads((run / "checkpoint-11" / "trainer_state.json").read_text())
    assert state["best_global_step"] == 2
    assert [entry["step"] for entry in state["log_history"] if "eval_accuracy" in entry][:4] == [2, 4, 6, 8]


def test_worker_processes_change_nothing(lab: Lab) -> None:
    """ICOT's reference reads its batches with two workers."""
    expected, *_ = lab.reference("icot", ICOT)
    run = lab.directory / "without_workers"
    lab.server.train(run, *ICOT[:-2])
    expected = {**expected, "done": {**expected["done"], "config_fingerprint": ending(run)["done"]["config_fingerprint"]}}
    assert_same_ending(run, expected)
