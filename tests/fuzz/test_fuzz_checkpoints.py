"""Checkpoints as they arrive: cut, flipped, incomplete, edited; every command that reads one does its work, or says why not in one line."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import strategies as st

from helpers.checks import make_trained
from helpers.fuzz_command import half_written, kava
from helpers.fuzz_inputs import INPUTS, damage, edited, fuzz
from kava.checkpoint import save_checkpoint
from kava.runtime.atomic import MANIFEST, seal

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1800)]

ROWS = [{"question": f"Tom has {n} apples at first . How many apples does Tom have ?", "steps": [], "answer": str(n)} for n in (1, 2)]


KEYS = (
    "method", "base", "config", "lora", "r", "num_tokens", "name", "files", "bytes", "sha256", "peft_type", "target_modules", "auto_map",
)  # fmt: skip


class Place:
    """A sound checkpoint, questions for it, and room for a spoilt copy."""

    def __init__(self, root: Path) -> None:
        self.root, self.whole, self.copy = root, root / "whole", root / "spoilt"
        trained = make_trained(root)
        trained.config.evaluation.max_new_tokens = 3
        save_checkpoint(self.whole, trained)
        self.names = sorted(path.name for path in self.whole.iterdir() if path.name != "README.md")
        self.questions = root / "questions.jsonl"
        self.questions.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def fresh(self) -> Path:
        shutil.rmtree(self.copy, ignore_errors=True)
        return shutil.copytree(self.whole, self.copy)

    def use(self, command: str) -> int:
        """Run one command on the spoilt copy; it may have written its result, and nothing else."""
        output = self.root / "results.yaml"
        checkpoint, questions = str(self.copy), str(self.questions)
        words = {
            "evaluate": ["evaluate", "--checkpoint_dir", checkpoint, "--eval_dataset", questions, "--output", str(output)],
            "inference": ["inference", "--checkpoint", checkpoint, "--mode", "batch", "--questions", ROWS[0]["question"]],
            "merge": ["merge", checkpoint, str(self.root / "merged")],
            "inspect": ["inspect", checkpoint],
        }[command]
        for old in (output, output.with_suffix(".jsonl")):
            old.unlink(missing_ok=True)
        shutil.rmtree(self.root / "merged", ignore_errors=True)
        code, _, _ = kava(*words)
        assert half_written(self.root) == []
        assert output.exists() == output.with_suffix(".jsonl").exists() == (code == 0 and command == "evaluate")
        assert (self.root / "merged").exists() == (code == 0 and command == "merge")
        return code


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("fuzz"))
    place.fresh()
    assert [place.use(command) for command in ("evaluate", "inference", "merge", "inspect")] == [0, 0, 0, 0]
    return place


COMMANDS = st.sampled_from(["evaluate", "evaluate", "inference", "merge", "inspect"])


def test_damaged_files(place: Place) -> None:
    """The manifest finds whatever was changed; where it was written anew, as by whoever sent the checkpoint, loading does."""

    @fuzz(INPUTS["checkpoints damaged"], name=st.sampled_from(place.names), change=damage(), resealed=st.booleans(), command=COMMANDS)
    def check(name: str, change: Callable[[bytes], bytes], resealed: bool, command: str) -> None:
        spoilt = place.fresh() / name
        before = spoilt.read_bytes()
        spoilt.write_bytes(change(before))
        if resealed:
            seal(place.copy)
        changed = spoilt.read_bytes() != before and name != MANIFEST
        code = place.use(command)
        if changed and not resealed and command != "inspect":
            assert code == 2


def _missing(path: Path) -> None:
    path.unlink()


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _another(path: Path) -> None:
    path.write_bytes(next(other for other in sorted(path.parent.iterdir()) if other != path).read_bytes())


def _pickle(path: Path) -> None:
    """Weights in a form that runs code."""
    path.with_suffix(".bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    path.unlink()


@pytest.mark.parametrize("resealed", [False, True])
@pytest.mark.parametrize("change", [_missing, _directory, _loop, _another, _pickle])
def test_files_that_are_no_longer_there(place: Place, change: Callable[[Path], None], resealed: bool) -> None:
    needed = {"kava_config.json", "projection.safetensors", "adapter_model.safetensors", "tokenizer.json"}
    for name in place.names:
        change(place.fresh() / name)
        if resealed:
            with suppress(OSError):
                seal(place.copy)
        code = place.use("evaluate")
        assert code == 2 or (resealed and name not in needed), name
    assert not Path("owned").exists()


def test_edited_settings(place: Place) -> None:
    """A manifest that fits what was edited: what the files say is checked by itself."""
    documents = {name: json.loads((place.whole / name).read_text()) for name in place.names if name.endswith(".json")}
    texts = st.one_of(*(st.tuples(st.just(name), edited(content, KEYS)) for name, content in documents.items() if name != "tokenizer.json"))
    texts |= st.tuples(st.just("kava_config.json"), edited(documents["kava_config.json"], KEYS))

    @fuzz(INPUTS["checkpoints edited"], edit=texts, command=COMMANDS)
    def check(edit: tuple[str, str], command: str) -> None:
        name, text = edit
        (place.fresh() / name).write_text(text)
        if name != MANIFEST:
            seal(place.copy)
        place.use(command)
