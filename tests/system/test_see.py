"""One short training with every tracker on, and what can be seen of it: event files, progress lines, `kava explain`."""

import glob
import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kava.cli import main
from kava.config import Config, load_config
from kava.errors import UserError
from kava.explain.pictures import cache_pictures
from kava.explain.record import read_explanation
from kava.report.runs import read_scalars
from kava.train.progress import Report, summary_table
from kava.train.run_directory import create_run_record
from kava.train.state import State
from kava.train.tracking import PROJECT, Trackers, checked_trackers
from kava.train.train import train

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
LATENTS, LAYERS, STEPS, EPOCHS = 4, 2, 8, 2
SETTINGS: dict[str, Any] = {
    "model.mini.pretrain_steps": 3, "model.mini.hidden_size": 32, "model.mini.num_layers": LAYERS, "dataset.mini.num_train": 32,
    "dataset.mini.num_eval": 40, "training.max_steps": STEPS, "training.eval_steps": 4, "training.save_steps": 8, "training.batch_size": 8,
    "training.logging_steps": 2, "evaluation.validation_samples": 8, "latent.num_tokens": LATENTS, "evaluation.max_new_tokens": 8,
    "system.device": "cpu",
}  # fmt: skip


def config() -> Config:
    return load_config(REPOSITORY / "configs" / "mini.yaml", SETTINGS)


def trackers() -> list[str]:
    """Those that are installed; TensorBoard is a dependency."""
    found = ["tensorboard"]
    for name in ("wandb", "trackio"):
        try:
            found += checked_trackers([name])
        except UserError:
            continue
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("see")
    surroundings = {"KAVA_CACHE": "cache", "WANDB_DIR": "", "TRACKIO_DIR": "trackio"}
    with pytest.MonkeyPatch.context() as patch:
        for name, place in surroundings.items():
            patch.setenv(name, str(root / place))
        for name, word in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
            patch.setenv(name, word)
        if "trackio" in trackers():
            import trackio.utils

            patch.setattr(trackio.utils, "TRACKIO_DIR", root / "trackio")
            patch.setattr("trackio.sqlite_storage.TRACKIO_DIR", root / "trackio", raising=False)
        with (root / "said.txt").open("w") as said, redirect_stdout(said):
            train(config(), root / "run", report_to=trackers(), name="mini", pictures=cache_pictures)
    return root / "run"


def test_event_files_hold_every_scalar(run: Path) -> None:
    scalars = read_scalars(run / "logs")
    for name in ("loss", "student_ce", "teacher_ce", "codi", "kv", "learning_rate", "grad_norm", "examples_per_second"):
        assert [step for step, _ in scalars[f"train/{name}"]] == [2, 4, 6, 8], name
        assert all(value == value and value >= 0 for _, value in scalars[f"train/{name}"])
    assert [step for step, _ in scalars["eval/accuracy"]] == [4, 8]
    done = json.loads((run / "training_done.json").read_text())
    assert max(value for _, value in scalars["eval/accuracy"]) == pytest.approx(done["accuracy"], abs=1e-6)
    total = dict(scalars["train/loss"])
    for step, loss in total.items():
        terms = {name: dict(scalars[f"train/{name}"])[step] for name in ("student_ce", "teacher_ce", "codi", "kv")}
        assert loss == pytest.approx(sum(terms.values()), rel=1e-4)  # mini: alpha1 = alpha2 = 1


def test_event_files_hold_a_picture_of_the_caches_per_epoch(run: Path) -> None:
    import numpy as np
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

    events = EventAccumulator(str(run / "logs"), size_guidance={IMAGES: 0})
    events.Reload()
    for name in ("kv_similarity/keys", "kv_similarity/values"):
        pictures = events.Images(name)
        assert [picture.step for picture in pictures] == [STEPS // EPOCHS, STEPS]
        first, last = (np.asarray(Image.open(io.BytesIO(picture.encoded_image_string))) for picture in pictures)
        assert first.shape == last.shape
        assert first.shape[2] == 3
        assert (first != last).any()


def wandb_records(path: str) -> Iterator[bytes]:
    """The records of a `.wandb` file: LevelDB's log format (blocks of 32 KiB; whole, first, middle and last parts) behind 7 bytes."""
    data, place, parts = Path(path).read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<xxxxHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def test_wandb_offline_writes_a_run(run: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    (path,) = glob.glob(str(run.parent / "wandb" / "offline-run-*" / "run-*.wandb"))
    logged: dict[str, list[str]] = {}
    for data in wandb_records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            assert (record.run.project, record.run.display_name) == ("kava-reproduction", "mini seed 42")
            assert record.run.run_id == json.loads((run / "run.json").read_text())["tracker_id"]
        for item in record.history.item:
            logged.setdefault(item.key or "/".join(item.nested_key), []).append(item.value_json)
    scalars = read_scalars(run / "logs")
    for name in ("train/kv", "train/codi", "train/grad_norm", "eval/accuracy"):
        assert [float(value) for value in logged[name]] == pytest.approx([value for _, value in scalars[name]], rel=1e-5), name
    assert any(key.startswith("kv_similarity/keys") for key in logged)


def test_a_run_that_goes_on_is_the_same_with_wandb(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name, word in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, word)
    own = create_run_record(run, resume=True, quick_test=False).tracker_id
    # W&B stays where the process began with it.
    before = {*run.parent.glob("wandb/offline-run-*")}
    Trackers(["wandb"], run, "mini seed 42", config(), own).close()
    after = {*run.parent.glob("wandb/offline-run-*")}
    assert len(after) == len(before) + 1
    assert {path.name.rpartition("-")[2] for path in after} == {own}
    assert create_run_record(run, resume=False, quick_test=False).tracker_id != own


def test_wandb_without_a_login_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = kept | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "PYTHONPATH": str(REPOSITORY / "src")}
    script = """
import wandb
from kava.cli import main
from kava.train.state import State
from kava.train.tracking import naming_wandb_errors
import kava.commands.train
def run(self):
    with naming_wandb_errors(["wandb"]):
        wandb.init(project="kava")
kava.commands.train.Train.run = run
main("train", [])
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("kava: ")]
    assert "--use_wandb: No API key configured" in line
    assert "WANDB_MODE=offline" in line


@pytest.mark.parametrize(("name", "option", "package"), [("wandb", "--use_wandb", "wandb"), ("trackio", "--report_to trackio", "trackio")])
def test_a_tracker_that_is_not_installed_is_named_as_it_was_asked_for(
    name: str, option: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match=f"^{option}: {package} is not installed; pip install {package}$"):
        checked_trackers([name])


def test_trackio_keeps_a_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", run.parent / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", run.parent / "trackio", raising=False)
    (name,) = SQLiteStorage.get_runs(PROJECT)
    # trackio knows runs by name alone: the id keeps those of another directory apart.
    assert name == f"mini seed 42 ({json.loads((run / 'run.json').read_text())['tracker_id']})"
    logs = SQLiteStorage.get_logs(PROJECT, name)
    kv = [entry["train/kv"] for entry in logs if "train/kv" in entry]
    scalars = read_scalars(run / "logs")
    assert kv == pytest.approx([value for _, value in scalars["train/kv"]], rel=1e-5)
    assert sum("kv_similarity/keys" in entry for entry in logs) == EPOCHS


def test_trackers_that_are_not_there_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        checked_trackers(["tensorbord"])
    assert checked_trackers(["tensorboard", "tensorboard"]) == ["tensorboard"]


def test_log_lines_hold_terms_throughput_and_time_left(run: Path) -> None:
    lines = (run / "train.log").read_text().splitlines()
    first = next(line for line in lines if "step 2/8" in line)
    for words in ("loss ", "ce ", "teacher ", "codi ", "kv ", "lr ", "grad ", "examples/s ", "s/step", "min left"):
        assert words in first
    assert "\x1b" not in "".join(lines)


def test_what_eviction_leaves_out_is_said_before_the_first_step(run: Path) -> None:
    """Traces of two steps have 7 entries, of three steps 14: M = 4 holds none."""
    said = [line for line in run.with_name("said.txt").read_text().splitlines() if line.startswith("mini seed 42: ")]
    assert said[0].startswith("mini seed 42: the CPU, ")
    assert said[0].endswith("8 steps")
    assert said[1].startswith(
        f"mini seed 42: 100% of the teacher's traces have more entries than latent.num_tokens {LATENTS}; eviction leaves"
    )
    assert "step 2/8" in said[2]


def test_a_terminal_gets_a_bar_and_a_final_table(tmp_path: Path) -> None:
    report = Report(tmp_path / "train.log", "一个 run")
    screen = io.StringIO()
    report.console = Console(file=screen, force_terminal=True, width=160)
    state = State(
        global_step=2, max_steps=8, best_metric=0.25,
        log_history=[{"loss": 2.0, "kv": 0.5, "step": 2}, {"loss": 1.5, "examples_per_second": 64.0}, {"eval_accuracy": 0.25}],
    )  # fmt: skip
    report.begin(state)
    state.global_step = 4
    report.step(state)
    report.log(state, {"loss": 1.5, "kv": 0.5, "examples_per_second": 64.0})
    report.end(state)
    shown = screen.getvalue()
    for words in ("一个 run", "4/8", "kv 0.5", "examples/s 64", "min left", "best validation accuracy", "25.0 %"):
        assert words in shown, words
    table = Console(file=io.StringIO(), width=80)
    table.print(summary_table("x", state, 90.0))
    assert table.file.getvalue().count("1.5") == 2  # type: ignore[attr-defined]  # the last loss, and the minutes


def test_explain_on_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = "Tom has 3 苹果 . How many apples does Tom have ?"
    with pytest.raises(SystemExit) as stop:
        main("explain", [str(run), "--question", question, "--dataset", "test", "--max_samples", "6", "--details", "2"])
    assert stop.value.code == 0
    found = read_explanation(run / "explain" / "explanation.json")
    assert found.questions[0].question == question
    assert len(found.questions) == 2
    assert found.interventions is not None
    assert (found.interventions.questions, len(found.interventions.effects)) == (6, 3 * (LATENTS + 1))
    # The question of one's own has no gold answer; the data set's have, and keep their accuracy.
    assert found.interventions.accuracy is not None
    assert found.questions[1].gold is not None
    assert found.questions[1].kept is not None
    assert found.mean_similarity is not None
    assert len(found.mean_similarity.keys) == LAYERS
    assert (run / "explain" / "interventions.png").stat().st_size > 5000
    assert "explanation.json" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main("explain", [str(run), "--question", "  "])
    assert stop.value.code == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_language_prints_on_a_narrow_terminal(encoding: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "kava", "inspect", str(tmp_path / "不存在.yaml")],
        env=environment,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert "不存在.yaml" in done.stderr.decode("utf-8")


def test_a_locale_without_the_letters_is_named(tmp_path: Path) -> None:
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(REPOSITORY / "src")}
    command = [sys.executable, "-m", "kava", "explain", str(tmp_path), "--question", "小明 has 3"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "'小明 has 3' has letters that this locale does not have; set PYTHONUTF8=1" in done.stderr.decode("utf-8")
