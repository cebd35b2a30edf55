"""Whose a run's directory is: what is refused, what is removed and when, and what is made again."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.checks import make_trained
from helpers.result_files import make_result
from helpers.tiny import lora_config, mini_examples, mini_tokenizer, tiny_lm
from kava.checkpoint import save_checkpoint
from kava.config import Config
from kava.config.fingerprint import former_fingerprint
from kava.errors import UserError
from kava.results import result_path, write_result
from kava.runtime.atomic import verify, write_atomic
from kava.runtime.lock import locked
from kava.train.resume import keep_newest
from kava.train.run_directory import Begun, begin, check_output_dir, create_run_record, find_resume_checkpoint, finished, lock_output_dir
from kava.train.train import _refuse_foreign, train

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and a data file."""
    place = tmp_path_factory.mktemp("place")
    tiny_lm(vocabulary=len(mini_tokenizer())).save_pretrained(place / "base")
    mini_tokenizer().save_pretrained(place / "base")
    rows = [{"question": example.question, "steps": list(example.steps), "answer": example.answer} for example in mini_examples(20)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def settings(place: Path, **overrides: Any) -> Config:
    return lora_config(
        **{
            "method": "no_cot", "model.name": str(place / "base"), "dataset.name": str(place / "rows.jsonl"), "training.batch_size": 2,
            "training.max_steps": 4, "training.logging_steps": 1, "training.eval_steps": 2, "training.save_steps": 1,
            "training.save_total_limit": None, "evaluation.validation_samples": 2, "evaluation.max_new_tokens": 2, "system.device": "cpu",
            **overrides,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished_run(place: Path) -> Path:
    """Four steps, checkpoints at each, the best at step 2."""
    train(settings(place), place / "run", quiet=True)
    assert json.loads((place / "run" / "best_checkpoint" / "kava_config.json").read_text())["step"] == 2
    return place / "run"


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "run")


def contents(directory: Path) -> dict[str, bytes]:
    """Every file but the lock, byte for byte."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def begun(directory: Path, resume: bool = False, quick_test: bool = False) -> Begun:
    """What a run does with its directory before its first step."""
    run = create_run_record(directory, resume=resume, quick_test=quick_test)
    begin(directory, lora_config(), run, resume=resume)
    return run


def test_a_finished_run_is_not_trained_over(run: Path, place: Path) -> None:
    before = contents(run)
    with pytest.raises(UserError, match=r"run holds a finished run \(4 steps\): --resume continues .* --overwrite deletes it"):
        train(settings(place), run, quiet=True)
    with pytest.raises(UserError, match="give one of them"):
        train(settings(place), run, resume=True, overwrite=True, quiet=True)
    assert train(settings(place), run, resume=True, quiet=True).steps == 4
    assert contents(run) == before


@pytest.mark.parametrize("earlier_version", [False, True])
def test_a_finished_run_is_finished_with_whatever_a_resume_may_change(run: Path, place: Path, earlier_version: bool) -> None:
    other = {"training.max_bad_batches": 3, "training.num_workers": 1, "training.save_total_limit": 1, "evaluation.batch_size": 8}
    marker = json.loads((run / "training_done.json").read_text())
    if earlier_version:
        of_then = settings(place, **{"training.save_total_limit": 7})
        (run / "config.yaml").write_text(yaml.safe_dump(of_then.to_dict()))
        (run / "training_done.json").write_text(json.dumps(marker | {"config_fingerprint": former_fingerprint(of_then.to_dict())}))
    before = contents(run)
    assert train(settings(place, **other), run, resume=True, quiet=True).steps == 4
    assert contents(run) == before
    changed = settings(place, **{"training.learning_rate": 1e-5, "training.seed": 3})
    with pytest.raises(UserError, match=r"configuration \(training.seed 42, not 3; training.learning_rate 0.0008, not 1e-05\); choose"):
        train(changed, run, resume=True, quiet=True)
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match="holds a finished run of another configuration; choose another --output_dir"):
        train(changed, run, resume=True, quiet=True)


def test_a_run_whose_validation_ran_out_of_memory_goes_on_with_fewer_questions_at_once(run: Path, place: Path) -> None:
    (run / "training_done.json").unlink()
    assert train(settings(place, **{"evaluation.batch_size": 8}), run, resume=True, quiet=True).steps == 4


def test_an_unfinished_run_is_not_trained_over_either(run: Path, place: Path) -> None:
    (run / "training_done.json").unlink()
    (run / "run.json").unlink()  # as runs before this file were
    before = contents(run)
    with pytest.raises(UserError, match=r"an unfinished run \(checkpoint-4\)"):
        train(settings(place), run, quiet=True)
    assert contents(run) == before


def test_nothing_is_removed_before_the_new_run_can_start(run: Path, place: Path) -> None:
    """The model that is to be trained is not there: what would have been overwritten stays."""
    before = contents(run)
    with pytest.raises(UserError, match="nowhere"):
        train(settings(place, **{"model.name": str(place / "nowhere")}), run, overwrite=True, quiet=True)
    assert contents(run) == before


def test_overwriting_removes_what_is_the_runs_own_and_nothing_else(run: Path, place: Path) -> None:
    foreign = ["notes.txt", "logs/events.out.tfevents.1700000000.host.1.0", "logs/slurm.out", "checkpoint-3/notes.txt",
               "best_checkpoint/notes.txt", ".keep.old/x", ".x.tmp", "results_mine.yaml"]  # fmt: skip
    for name in foreign:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine: 1")
    write_result(result_path(run, "gsm8k"), make_result(42))
    events = set(run.glob("logs/events*"))
    train(settings(place, **{"training.max_steps": 1, "training.eval_steps": 1}), run, overwrite=True, quiet=True)
    for name in foreign:
        assert (run / name).read_text() == "mine: 1", name
    assert not result_path(run, "gsm8k").exists()
    assert sorted(path.name for path in run.glob("checkpoint-*/manifest.json")) == ["manifest.json"]
    assert verify(run / "checkpoint-1") is None
    assert json.loads((run / "training_done.json").read_text())["steps"] == 1
    assert len(events & set(run.glob("logs/events*"))) == 1  # the foreign one
    assert (run / "train.log").read_text().count("step 1/1") == len((run / "train.log").read_text().splitlines())


@pytest.mark.parametrize("name", ["config.yaml", "train.log", "training_done.json", "run.json", "checkpoint-99/x", "best_checkpoint/x"])
@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_files_of_something_else_are_not_written_over(tmp_path: Path, name: str, options: dict[str, bool]) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("learning_rate: 1\n")
    (tmp_path / "logs").mkdir()
    with pytest.raises(UserError, match=rf"no kava run wrote its {name.partition('/')[0]}; choose another --output_dir"):
        check_output_dir(tmp_path, **{"resume": False, "overwrite": False, "quick_test": False} | options)


def test_a_directory_with_other_files_may_hold_a_run_too(tmp_path: Path) -> None:
    """A runner's log and lock, a user's notes, a foreign logs/."""
    for name in ("run.log", ".lock", "notes.txt", "logs/kava_1.out", "data/checkpoint-x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    before = contents(tmp_path)
    check_output_dir(tmp_path, resume=False, overwrite=False, quick_test=False)
    begun(tmp_path)
    assert contents(tmp_path).items() >= before.items()


def test_a_quick_test_may_replace_a_quick_test_only(tmp_path: Path) -> None:
    def held(directory: Path, quick_test: bool) -> None:
        check_output_dir(directory, resume=False, overwrite=False, quick_test=quick_test)

    for was_quick in (True, False):
        directory = tmp_path / str(was_quick)
        directory.mkdir()
        begun(directory, quick_test=was_quick)
        held(directory, quick_test=False)  # nothing of worth is in it yet
        write_atomic(directory / "checkpoint-1", lambda staging: (staging / "weights").write_bytes(b"x") and None)
        with pytest.raises(UserError, match="an unfinished run"):
            held(directory, quick_test=False)
        if was_quick:
            held(directory, quick_test=True)
        else:
            with pytest.raises(UserError, match="an unfinished run"):
                held(directory, quick_test=True)


def test_a_resumed_run_keeps_its_identity(tmp_path: Path) -> None:
    first, again, other = begun(tmp_path), begun(tmp_path, resume=True), begun(tmp_path)
    assert first.tracker_id == again.tracker_id != other.tracker_id
    assert Begun.model_validate_json((tmp_path / "run.json").read_text()) == other


def test_a_lost_best_checkpoint_is_made_again_from_the_one_with_its_weights(
    run: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run / "best_checkpoint")
    weights = run / "best_checkpoint" / "adapter_model.safetensors"
    for damage in (lambda: shutil.rmtree(run / "best_checkpoint"), lambda: weights.write_bytes(b"x")):
        damage()
        assert train(settings(place), run, resume=True, quiet=True).exit_code == 0
        assert "best_checkpoint is lost" in capsys.readouterr().err
        assert verify(run / "best_checkpoint") is None
        assert contents(run / "best_checkpoint") == before


def test_without_that_one_the_run_goes_back_to_make_it_again(run: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: content for name, content in contents(run / "best_checkpoint").items() if name.endswith(".safetensors")}
    shutil.rmtree(run / "best_checkpoint")
    shutil.rmtree(run / "checkpoint-2")
    assert train(settings(place), run, resume=True, quiet=True).exit_code == 0
    assert "going back to checkpoint-1, from before it" in capsys.readouterr().err
    after = contents(run / "best_checkpoint")
    assert {name: after[name] for name in before} == before
    assert json.loads((run / "training_done.json").read_text())["steps"] == 4


def test_a_best_checkpoint_that_cannot_be_made_again_is_said(run: Path, place: Path) -> None:
    shutil.rmtree(run / "best_checkpoint")
    for step in (1, 2):
        shutil.rmtree(run / f"checkpoint-{step}")
    with pytest.raises(UserError, match=r"best_checkpoint is lost .* copy it back, or train again with --overwrite; .*checkpoint-4 can be"):
        train(settings(place), run, resume=True, quiet=True)
    for step in (3, 4):
        shutil.rmtree(run / f"checkpoint-{step}")
    with pytest.raises(UserError, match="copy it back, or train again with --overwrite$"):
        find_resume_checkpoint(run)


@pytest.mark.parametrize("length", [None, 50])
def test_a_checkpoint_that_does_not_say_what_it_is_gives_way_to_an_older_one(
    run: Path, place: Path, length: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "training_done.json").unlink()
    damaged = run / "checkpoint-4" / "kava_config.json"
    content = damaged.read_text()
    damaged.unlink() if length is None else damaged.write_text(content[:length])
    assert train(settings(place), run, resume=True, quiet=True).steps == 4
    assert "checkpoint-4 is damaged (kava_config.json " in capsys.readouterr().err
    assert verify(run / "checkpoint-4") is None


@pytest.mark.parametrize("key", ["training.learning_rate", "training.seed"])
def test_a_run_cut_off_before_its_first_checkpoint_keeps_its_best_from_other_settings(run: Path, place: Path, key: str) -> None:
    for rest in (run / "training_done.json", *run.glob("checkpoint-*")):
        shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    before = contents(run)
    with pytest.raises(UserError, match=rf"the unfinished run in .* has {key} .*, not 9"):
        train(settings(place, **{key: 9}), run, resume=True, quiet=True)
    assert contents(run) == before


def test_only_checkpoints_that_are_needed_are_read(run: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 3):
        (run / f"checkpoint-{step}" / "optimizer.pt").unlink()
    assert find_resume_checkpoint(run) == run / "checkpoint-4"
    assert capsys.readouterr().err == ""
    shutil.rmtree(run / "checkpoint-4")
    shutil.rmtree(run / "best_checkpoint")
    assert find_resume_checkpoint(run) == run / "checkpoint-2"
    said = capsys.readouterr().err
    assert "checkpoint-3 is damaged" in said
    assert "checkpoint-1" not in said
    # Of a finished run nothing but the best checkpoint.
    shutil.rmtree(run / "checkpoint-2")
    assert train(settings(place), run, resume=True, quiet=True).steps == 4
    assert capsys.readouterr().err == ""


def test_processes_that_find_different_runs_do_not_train_together(run: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories of one name on the disks of two machines; what the second process finds is put in."""
    others = ["no checkpoint", "no finished run"]
    monkeypatch.setattr("kava.train.run_directory.processes.gather", lambda own: [*own, others.pop()])
    with pytest.raises(UserError, match=r"process 0 finds a finished run in .*, process 1 no finished run: give an --output_dir on a disk"):
        finished(run, settings(place))
    with pytest.raises(UserError, match=r"process 0 finds checkpoint-4 in .*, process 1 no checkpoint: give an --output_dir on a disk"):
        find_resume_checkpoint(run)


def test_a_run_goes_on_though_its_base_was_moved(run: Path, place: Path) -> None:
    (run / "training_done.json").unlink()
    shutil.copytree(place / "base", place / "moved", dirs_exist_ok=True)
    assert train(settings(place, **{"model.name": str(place / "moved")}), run, resume=True, quiet=True).steps == 4
    tiny_lm(vocabulary=len(mini_tokenizer()), spread=0.2).save_pretrained(place / "other")
    mini_tokenizer().save_pretrained(place / "other")
    (run / "training_done.json").unlink()
    with pytest.raises(UserError, match="other is not the one that checkpoint .* was trained on"):
        train(settings(place, **{"model.name": str(place / "other")}), run, resume=True, quiet=True)


def test_a_run_goes_on_with_as_many_processes_and_the_same_rows_or_not_at_all(tmp_path: Path) -> None:
    """Schedule and order of the examples follow from both."""
    trained = make_trained(tmp_path)
    trained.metadata["data"] = {"source": "here", "rows": 3, "fingerprint": "a", "validation_fingerprint": "c"}
    newest = tmp_path / "run" / "checkpoint-2"
    save_checkpoint(newest, trained)
    _refuse_foreign(newest, trained)
    trained.metadata["data"] = {"fingerprint": "b"}
    with pytest.raises(UserError, match="checkpoint-2 was trained on other rows than there are now"):
        _refuse_foreign(newest, trained)
    trained.metadata["data"] = {"fingerprint": "a", "validation_fingerprint": "d"}
    with pytest.raises(UserError, match="checkpoint-2 was validated on other questions than there are now: give the same data"):
        _refuse_foreign(newest, trained)
    for rank in range(2):
        (newest / f"rng_state_{rank}.pth").touch()
    with pytest.raises(UserError, match=r"written by 2 processes, and there are 1 now.* start 2 \(torchrun --nproc-per-node 2\)"):
        _refuse_foreign(newest, trained)


def test_the_newest_checkpoint_of_a_limit_is_the_one_just_written(tmp_path: Path) -> None:
    """One of a later step is damaged, or its run fell back behind it."""
    for step in (100, 110, 120, 500):
        write_atomic(tmp_path / f"checkpoint-{step}", lambda staging: (staging / "a").touch())
    keep_newest(tmp_path, 2, 120)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-110", "checkpoint-120", "checkpoint-500"]


def test_a_second_run_in_a_directory_is_refused_and_names_the_first(tmp_path: Path, place: Path) -> None:
    with lock_output_dir(tmp_path), pytest.raises(UserError, match=rf"is in use by another run \(process {os.getpid()}: "):
        train(settings(place), tmp_path, quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]


def test_a_lock_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"Is a directory: .*\.lock; give another path"), lock_output_dir(tmp_path):
        pass


CHILD = """
import sys, time
from pathlib import Path
from kava.runtime.lock import locked
with locked(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


def test_a_child_is_let_in_by_its_parents_lock_and_is_named_when_the_parent_is_gone(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    with locked(tmp_path) as inherit:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=inherit, env=environment
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"in\n"
    # The parent has let go; its child holds on.
    with pytest.raises(UserError, match=rf"\(process {child.pid}: "), locked(tmp_path):
        pass
    child.communicate()
    with locked(tmp_path):
        pass


def test_a_data_loaders_fork_does_not_hold_the_lock_on(tmp_path: Path) -> None:
    ready, begun = os.pipe()
    with locked(tmp_path):
        process = os.fork()
        if process == 0:
            os.write(begun, b".")
            signal.pause()
            os._exit(0)
    os.read(ready, 1)
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)


@pytest.mark.parametrize("mask", [0o022, 0o007, 0o077])
def test_the_umask_decides_who_may_read_weights(finished_run: Path, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "checkpoint", lambda staging: shutil.copytree(finished_run / "checkpoint-4", staging, dirs_exist_ok=True))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "checkpoint").iterdir()}
    assert set(modes.values()) == {0o666 & ~mask}
    assert "adapter_model.safetensors" in modes


def test_no_permission_is_not_damage(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = finished_run / "checkpoint-4" / "adapter_model.safetensors"
    whole = Path.open

    def refused(self: Path, *arguments: Any, **options: Any) -> Any:
        # Root, as whom tests may run, is never refused.
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return whole(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError, match=r"no permission to read .*adapter_model.safetensors: ask its owner"):
        verify(path.parent)
