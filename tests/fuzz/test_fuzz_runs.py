"""What a run goes on from and what it leaves for a replay, spoilt: taken, passed over or refused, and never half believed."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st

from helpers.checks import make_trained
from helpers.fuzz_command import half_written, kava
from helpers.fuzz_inputs import INPUTS, damage, edited, fuzz
from helpers.tiny import mini_builder, mini_examples
from kava.data.collate import build_collator
from kava.runtime.atomic import MANIFEST, seal
from kava.train.guard import RecordedBatch, generator_states
from kava.train.replay import save_step

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1800)]

Change = Callable[[bytes], bytes] | str
KEYS = ("global_step", "max_steps", "log_history", "best_metric", "stateful_callbacks", "method", "config", "files")


def spoil(path: Path, change: Change) -> None:
    path.write_bytes(change.encode("utf-8", "surrogatepass") if isinstance(change, str) else change(path.read_bytes()))


def changes(whole: Path) -> st.SearchStrategy[tuple[str, Change]]:
    """A file below a directory, and what happens to it: damage, or an edit of a JSON document."""
    files = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file() and "events" not in path.name)
    edits = [
        st.tuples(st.just(name), edited(json.loads((whole / name).read_text()), KEYS))
        for name in files
        if name.endswith(".json") and not name.endswith("tokenizer.json")
    ]
    return st.tuples(st.sampled_from(files), damage()) | st.one_of(*edits)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that was stopped after the first of two steps, and the words that go on with it."""
    room = tmp_path_factory.mktemp("fuzz")
    make_trained(room)
    words = [
        "train", "--config", "mini", "--resume", "--model.name", str(room / "base"), "--lora.r", "4", "--latent.num_tokens", "3",
        "--training.max_steps", "2", "--training.batch_size", "2", "--training.save_steps", "1", "--training.eval_steps", "2",
        "--evaluation.max_new_tokens", "2", "--evaluation.validation_samples", "1", "--dataset.mini.num_train", "8",
        "--system.mixed_precision", "no", "--system.device", "cpu", "--dataset.mini.modulus", "5", "--dataset.mini.max_steps", "3",
    ]  # fmt: skip
    kava(*words, "--output_dir", str(room / "begun"), codes=(0,))
    for late in ("checkpoint-2", "best_checkpoint", "logs"):
        shutil.rmtree(room / "begun" / late)
    (room / "begun" / "training_done.json").unlink()
    return room / "begun", words


def resume(begun: tuple[Path, list[str]], run: Path) -> int:
    code, _, _ = kava(*begun[1], "--output_dir", str(run))
    assert half_written(run) == []
    assert (run / "training_done.json").exists() == (run / "best_checkpoint" / MANIFEST).exists() == (code == 0)
    return code


def test_spoilt_runs(begun: tuple[Path, list[str]]) -> None:
    run = begun[0].with_name("run")

    @fuzz(INPUTS["runs resumed"], change=changes(begun[0]), resealed=st.booleans())
    def check(change: tuple[str, Change], resealed: bool) -> None:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(begun[0], run)
        spoil(run / change[0], change[1])
        if resealed and MANIFEST not in change[0]:
            seal(run / "checkpoint-1")
        resume(begun, run)


@pytest.mark.parametrize("own_file", [True, False])
@pytest.mark.parametrize(("key", "value", "words"), [("loss.alpha2_kv", "3", "1.0, not 3.0"), ("method", "codi", "'kava', not 'codi'")])
def test_another_configuration_is_refused_by_name(begun: tuple[Path, list[str]], own_file: bool, key: str, value: str, words: str) -> None:
    """By the run's own file, and where that is gone by the checkpoint's."""
    run = begun[0].with_name("other")
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(begun[0], run)
    if not own_file:
        (run / "config.yaml").unlink()
    _, _, said = kava(*begun[1], "--output_dir", str(run), f"--{key}", value, codes=(2,))
    assert f"has {key} {words}" in said
    assert said.startswith(f"kava: the unfinished run in {run} " if own_file else f"kava: checkpoint {run / 'checkpoint-1'} ")


class Evil:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return (Path.touch, (Path("owned"),))  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_unpickled(begun: tuple[Path, list[str]], name: str, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """States that run code when they are loaded, in a checkpoint whose manifest fits: refused, and nothing has run."""
    run = begun[0].with_name("evil")
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(begun[0], run)
    monkeypatch.chdir(run)
    if zipped:
        torch.save({"state": Evil()}, run / "checkpoint-1" / name)
    else:
        (run / "checkpoint-1" / name).write_bytes(pickle.dumps(Evil()))
    seal(run / "checkpoint-1")
    assert resume(begun, run) == 2
    assert not (run / "owned").exists()


def test_spoilt_steps(tmp_path: Path) -> None:
    """`kava replay`: exit code 0 where all numbers are finite, 1 where not, 2 where the directory is not what it was."""
    trained = make_trained(tmp_path)
    builder = mini_builder()
    batch = build_collator(trained.config, builder).collate([builder.encode(example) for example in mini_examples(2)])
    save_step(tmp_path / "whole", trained, [RecordedBatch(batch, generator_states(), {"loss": torch.ones(2)})], 3, "kv is NaN", ["a"], 1.0)
    kava("replay", str(tmp_path / "whole"), codes=(0,))
    copy = tmp_path / "copy"

    @fuzz(INPUTS["saved steps"], change=changes(tmp_path / "whole"), resealed=st.booleans())
    def check(change: tuple[str, Change], resealed: bool) -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", copy)
        before = (copy / change[0]).read_bytes()
        spoil(copy / change[0], change[1])
        changed = (copy / change[0]).read_bytes() != before
        if resealed and MANIFEST not in change[0]:
            seal(copy / "checkpoint")
            seal(copy)
        code, _, _ = kava("replay", str(copy), codes=(0, 1, 2))
        assert resealed or not changed or MANIFEST in change[0] or code == 2
