"""Data files as they are found: in the wrong encoding, cut, with rows that are no rows; loaded, counted, or named in one line."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import strategies as st

from helpers.checks import make_trained
from helpers.fuzz_command import half_written, kava
from helpers.fuzz_inputs import INPUTS, ODD_VALUES, damage, edited, fuzz
from helpers.tiny import mini_builder
from kava.config import build_config
from kava.data.sources.load import Loaded, load_benchmark
from kava.errors import UserError
from kava.runtime.cache_directory import cache_dir
from kava.train.prepare import prepare_data

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1800)]

ROWS: dict[str, list[dict[str, Any]]] = {
    "steps": [{"question": f"Tom has {n} . How many ?", "steps": [f"<<{n}+1={n + 1}>>", "<<1+1=2>>"], "answer": str(n)} for n in range(12)],
    "gsm8k": [{"question": f"Question {n}?", "answer": f"It is <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"} for n in range(12)],
    "gsm-hard": [{"input": f"Ducks {n}?", "code": "", "target": n + 0.5} for n in range(12)],
    "svamp": [{"ID": f"chal-{n}", "Body": "Each pack costs 76.", "Question": "How much?", "Answer": float(n)} for n in range(12)],
}
KEYS = ("question", "steps", "answer", "text", "input", "target", "Body", "Question", "Answer")


def write(path: Path, rows: list[dict[str, Any]], container: str) -> bytes:
    if container == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif container == "text":
        path.write_text("".join(f"Question {n}?||<<{n}+1={n + 1}>> #### {n + 1}\n" for n in range(len(rows))))
    elif container == "json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.read_bytes()


def load(path: str, on_bad_row: str) -> Loaded | None:
    """Read a source as a training and as an evaluation do; what is read can be encoded, and nothing else than `UserError` comes."""
    builder, loaded = mini_builder(), None
    # Hundreds of entries are looked through for the oldest each time that one is added.
    shutil.rmtree(cache_dir() / "tokens", ignore_errors=True)
    with suppress(UserError):
        prepared = prepare_data(build_config({}, "fuzz", {"dataset.name": path, "dataset.on_bad_row": on_bad_row}), builder)
        assert 0 < len(prepared.train) == prepared.data["rows"]
        assert prepared.validation
    for dataset in ("gsm8k", "svamp", "own"):
        with suppress(UserError):
            loaded = load_benchmark(dataset, path, on_bad_row="skip" if on_bad_row == "skip" else "error")
            assert loaded.examples
            assert on_bad_row == "skip" or loaded.bad_rows == 0
            builder.encode_all(loaded.examples)
    return loaded


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a base model, and a cache of these tests' own."""
    room = tmp_path_factory.mktemp("fuzz")
    make_trained(room)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAVA_CACHE", str(room / "cache"))
        yield room


def model(room: Path) -> list[str]:
    """The options of a run of one small step."""
    base = ["--model.name", str(room / "base"), "--lora.r", "4", "--latent.num_tokens", "3", "--system.mixed_precision", "no"]
    small = ["--training.max_steps", "1", "--training.batch_size", "2", "--evaluation.max_new_tokens", "2"]
    return ["--config", "mini", *base, *small, "--evaluation.validation_samples", "1", "--system.device", "cpu"]


def test_damaged_files(room: Path) -> None:
    wholes = [write(room / "whole", rows, container) for container in ("jsonl", "json", "parquet", "text") for rows in ROWS.values()]

    @fuzz(INPUTS["data files damaged"], whole=st.sampled_from(wholes), change=damage(), on_bad_row=st.sampled_from(["error", "skip"]))
    def check(whole: bytes, change: Callable[[bytes], bytes], on_bad_row: str) -> None:
        (room / "rows").write_bytes(change(whole))
        load(str(room / "rows"), on_bad_row)


def test_edited_rows(room: Path) -> None:
    """One row in the middle is odd: it is refused by its line, or left out and counted, and all others stay."""
    texts = st.sampled_from(sorted(ROWS)).flatmap(lambda name: st.tuples(st.just(name), edited(ROWS[name][5], KEYS)))

    @fuzz(INPUTS["data rows edited"], row=texts, container=st.sampled_from(["jsonl", "json"]))
    def check(row: tuple[str, str], container: str) -> None:
        name, text = row
        lines = [json.dumps(other) for other in ROWS[name]]
        lines[5] = text
        (room / "rows").write_text("\n".join(lines) if container == "jsonl" else "[" + ",\n".join(lines) + "]")
        load(str(room / "rows"), "error")
        loaded = load(str(room / "rows"), "skip")
        if container == "jsonl":
            assert loaded is not None
            assert len(loaded.examples) + loaded.bad_rows == 12
            assert loaded.bad_rows <= 1


def test_names(room: Path) -> None:
    """Whatever a configuration may name as its data: too long, with bytes that no path has, someone's home, a loop, a directory."""
    (room / "loop").symlink_to("loop")
    (room / "empty").mkdir()
    (room / "looped").mkdir()
    (room / "looped" / "train.jsonl").symlink_to("train.jsonl")
    odd = [json.loads(value) for value in ODD_VALUES if value.startswith('"')]
    paths = [str(room / name) for name in ("loop", "empty", "looped", "no")]
    for name in [*odd, *paths, "/", "builtin:", "builtin:mini/../x"]:
        if name:
            kava("train", *model(room), f"--dataset.name={json.dumps(name)}", "--output_dir", str(room / "run"), codes=(2,))
        shutil.rmtree(room / "run", ignore_errors=True)


def test_commands_on_odd_files(room: Path) -> None:
    """The whole of a training, of an evaluation and of a batch of questions, on files that are nearly right."""
    assert kava("train", "--output_dir", str(room / "ready"), *model(room), "--dataset.mini.num_train", "4")[0] == 0
    lines = [json.dumps(row) for row in ROWS["steps"]]

    @fuzz(INPUTS["data files that train"], row=edited(ROWS["steps"][5], KEYS), command=st.sampled_from(["train", "evaluate", "inference"]))
    def check(row: str, command: str) -> None:
        path, run, output = room / "rows.jsonl", room / "run", room / "out.yaml"
        path.write_text("\n".join([*lines[:5], row, *lines[6:]]))
        shutil.rmtree(run, ignore_errors=True)
        for old in (output, output.with_suffix(".jsonl")):
            old.unlink(missing_ok=True)
        words = {
            "train": ["--output_dir", str(run), "--dataset.name", str(path), *model(room)],
            "evaluate": ["--checkpoint", str(room / "ready"), "--dataset", str(path), "--output", str(output)],
            "inference": ["--checkpoint", str(room / "ready"), "--mode", "batch", "--input_file", str(path), "--output_file", str(output)],
        }[command]
        code, _, _ = kava(command, *words)
        assert half_written(room) == []
        assert output.exists() == (code == 0 and command != "train")
        assert (run / "training_done.json").exists() == (code == 0 and command == "train")
