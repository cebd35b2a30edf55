"""Tokenised data: the same examples from disk as from memory, made once, made again where damaged, and bounded."""

import errno
import json
import os
import pickle
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.loading import open_named
from helpers.tiny import make_examples, mini_builder, mini_examples, total_length
from kava.data.encoded_rows import EncodedRows, lengths_of, write_rows
from kava.data.sequences import EncodedExample, SequenceBuilder
from kava.data.sources.splits import Splits
from kava.data.tokenized_cache import ROWS, Tokenised, entry_name, tokenise
from kava.errors import UserError
from kava.runtime.lock import locked
from kava.train.sampler import LengthSortedSampler

COUNT = 60


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAVA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KAVA_CACHE_GIB", raising=False)
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"question": e.question, "steps": list(e.steps), "answer": e.answer}) for e in mini_examples(COUNT)]
    path.write_text("\n".join(lines))
    return path


def opened(path: Path, **changes: object) -> Splits:
    return open_named(str(path), **{"cot_type": "equation", **changes})


def counted(splits: Splits) -> tuple[Splits, list[int]]:
    """The same splits, and a list that grows by one at each reading."""
    readings: list[int] = []

    def read() -> object:
        readings.append(1)
        return splits.read()

    return replace(splits, read=read), readings


def test_from_disk_come_the_same_examples_in_the_same_order(tmp_path: Path) -> None:
    examples = [*make_examples(2500), EncodedExample([3], [], [5, 6], 2**32 - 1, "no/steps/1")]
    assert write_rows(tmp_path / "rows.arrow", iter(examples)) == len(examples)
    found = EncodedRows(tmp_path / "rows.arrow")
    assert list(found) == examples
    assert type(found[0].question[0]) is type(found[0].seed) is int
    assert (found[-1], found[5:8], found[::-1][0]) == (examples[-1], examples[5:8], examples[-1])
    with pytest.raises(IndexError, match="row 2501 of 2501"):
        found[len(examples)]
    for one, other in zip(found.lengths, lengths_of(examples), strict=True):
        assert one.tolist() == other.tolist()
    assert found.lengths.total.tolist() == [total_length(example) for example in examples]
    order = [LengthSortedSampler(lengths, 16, 3).order(0).tolist() for lengths in (found.lengths, lengths_of(examples))]
    assert order[0] == order[1]


def test_chosen_rows_are_a_sequence_too_and_travel_by_path(tmp_path: Path) -> None:
    examples = make_examples(30)
    write_rows(tmp_path / "rows.arrow", examples)
    wanted = np.array([total_length(example) % 2 == 0 for example in examples])
    some = EncodedRows(tmp_path / "rows.arrow").only(wanted)
    expected = [example for example, kept in zip(examples, wanted, strict=True) if kept]
    for found in (some, pickle.loads(pickle.dumps(some))):
        assert list(found) == expected
        assert found[-1] == expected[-1]
        assert found.lengths.total.tolist() == [total_length(example) for example in expected]
    assert len(pickle.dumps(some)) < 2000
    assert list(some.only(some.lengths.total > 20)) == [example for example in expected if total_length(example) > 20]


def test_what_is_open_outlives_its_file_and_an_opening_is_a_use(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    examples = make_examples(4)
    write_rows(path, examples)
    found = EncodedRows(path)
    os.utime(path, (0, 0))
    pickle.loads(pickle.dumps(found))
    assert path.stat().st_mtime > 0
    path.unlink()
    assert list(found.only(np.array([True, False, True, False]))) == [examples[0], examples[2]]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        examples: Iterator[EncodedExample] = (EncodedExample([7] * 60, [[8] * 9] * 3, [9] * 8, n, f"rows/{n}") for n in range(count))
        tracemalloc.start()
        write_rows(tmp_path / "rows.arrow", examples)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(8000) < 1.2 * peak(2000)


def test_the_second_start_reads_no_row(rows: Path, cache: Path) -> None:
    builder = mini_builder()
    splits, readings = counted(opened(rows))
    first, second = tokenise(splits, builder), tokenise(splits, builder)
    train, validation = opened(rows).read()
    assert len(readings) == 1
    for found in (first, second):
        assert list(found.rows) == builder.encode_all(train)
        assert found.validation == validation.examples
        assert found.about["fingerprint"] == train.fingerprint
        assert found.about["validation_fingerprint"] == validation.fingerprint
    assert len(list(cache.glob("[!.]*"))) == 1


def test_whatever_changes_the_tokens_is_another_entry(rows: Path) -> None:
    builder = mini_builder()
    name = entry_name(opened(rows), builder)
    assert entry_name(opened(rows), mini_builder()) == name
    others = [entry_name(opened(rows, **{key: value}), builder) for key, value in
              {"cot_type": "natural_language", "on_bad_row": "skip", "limit": 5, "train_split": "training"}.items()]  # fmt: skip
    other_prompt, other_tokenizer = (SequenceBuilder(deepcopy(builder.tokenizer), builder.answer_prompt) for _ in range(2))
    other_prompt.answer_prompt = "Answer:"
    other_tokenizer.tokenizer.add_tokens(["<more>"])
    others += [entry_name(opened(rows), other_prompt), entry_name(opened(rows), other_tokenizer)]
    moved = rows.rename(rows.with_name("moved.jsonl"))
    others.append(entry_name(opened(moved), builder))
    same = moved.rename(rows)
    assert entry_name(opened(same), builder) == name
    rows.write_text(rows.read_text().replace("apples", "pears", 1))
    others.append(entry_name(opened(rows), builder))
    assert len({name, *others}) == 1 + len(others)


def test_the_generator_has_an_entry_of_its_own_for_each_shape() -> None:
    from kava.config import MiniDataConfig

    shapes = [MiniDataConfig(num_train=20), MiniDataConfig(num_train=21), MiniDataConfig(num_train=20, data_seed=1)]
    names = {entry_name(open_named("builtin:mini", cot_type="equation", mini=shape), mini_builder()) for shape in shapes}
    assert len(names) == 3


def test_several_that_start_at_once_make_it_once(rows: Path) -> None:
    splits, readings = counted(opened(rows))
    with ThreadPoolExecutor(4) as pool:
        found = [future.result() for future in [pool.submit(tokenise, splits, mini_builder()) for _ in range(4)]]
    assert len(readings) == 1
    assert all(list(one.rows) == list(found[0].rows) for one in found)


def cut(entry: Path) -> None:
    os.truncate(entry / ROWS, (entry / ROWS).stat().st_size // 2)


def flip(entry: Path) -> None:
    content = bytearray((entry / ROWS).read_bytes())
    content[len(content) // 2] ^= 1
    (entry / ROWS).write_bytes(content)


def lose(entry: Path) -> None:
    (entry / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [cut, flip, lose])
def test_a_damaged_entry_is_made_again_with_one_line(
    damage: Callable[[Path], None], rows: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = list(tokenise(opened(rows), mini_builder()).rows)
    damage(next(cache.glob("[!.]*")))
    capsys.readouterr()
    assert list(tokenise(opened(rows), mini_builder()).rows) == expected
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is damaged" in said
    assert "making it again" in said


def test_what_a_killed_process_left_half_written_is_never_used(rows: Path, cache: Path) -> None:
    name = entry_name(opened(rows), mini_builder())
    half = cache / f".{name}.writing"
    half.mkdir(parents=True)
    (half / ROWS).write_bytes(b"ARROW1")
    assert len(tokenise(opened(rows), mini_builder()).rows) == COUNT - COUNT // 10
    assert not half.exists()


def test_a_bad_row_leaves_nothing_behind(rows: Path, cache: Path) -> None:
    rows.write_text(rows.read_text() + "\nbroken")
    with pytest.raises(UserError, match=f"line {COUNT + 1}: not valid JSON"):
        tokenise(opened(rows), mini_builder())
    assert not list(cache.glob("[!.]*"))
    assert not list(cache.glob(".*.writing"))


def made(rows: Path, limit: int) -> Tokenised:
    return tokenise(opened(rows, limit=limit), mini_builder())


def test_the_entries_used_longest_ago_go_first(rows: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = made(rows, 10)
    paths = [next(cache.glob("[!.]*"))]
    for limit in (11, 12):
        made(rows, limit)
        paths.append(next(path for path in cache.glob("[!.]*") if path not in paths))
    for age, path in zip((30, 20, 10), paths, strict=True):
        stamp = (path / ROWS).stat().st_mtime - age
        os.utime(path / ROWS, (stamp, stamp))
    made(rows, 10)  # used again: now the youngest of the three
    size = sum(path.stat().st_size for path in paths[0].iterdir())
    monkeypatch.setenv("KAVA_CACHE_GIB", str(2.5 * size / 2**30))
    made(rows, 13)
    assert [path.exists() for path in paths] == [True, False, False]
    monkeypatch.setenv("KAVA_CACHE_GIB", "0")
    with locked(paths[0].with_name(f".{paths[0].name}")):
        made(rows, 14)
    assert paths[0].exists()
    made(rows, 15)
    assert len(list(cache.glob("[!.]*"))) == 1
    assert len(list(kept.rows)) == 10  # what is mapped stays readable


def test_an_entry_that_another_process_removes_meanwhile_is_gone(rows: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(rows, 10)
    other, look = next(cache.glob("[!.]*")), Path.glob

    def remove_once_seen(path: Path, pattern: str) -> list[Path]:
        found = list(look(path, pattern))
        if any(other in entry.parents for entry in found):
            shutil.rmtree(other, ignore_errors=True)
        return found

    monkeypatch.setattr(Path, "glob", remove_once_seen)
    monkeypatch.setenv("KAVA_CACHE_GIB", "0")
    assert len(made(rows, 11).rows) == 11
    assert not other.exists()


@pytest.mark.parametrize("text", ["much", "-1", "nan"])
def test_a_limit_that_is_none_is_named(text: str, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAVA_CACHE_GIB", text)
    with pytest.raises(UserError, match=f"KAVA_CACHE_GIB is '{text}'; set it to a number of GiB"):
        made(rows, 3)


def test_a_cache_that_cannot_be_written_is_one_sentence(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAVA_CACHE", str(rows))
    with pytest.raises(UserError, match="cannot be put into the cache .*set KAVA_CACHE to a directory that can be written to"):
        made(rows, 3)


def test_a_cache_that_can_only_be_read_will_do_where_it_holds_the_entry(rows: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shared one; root, as whom tests may run, may write anywhere, so that the system's refusal is played."""
    expected = list(made(rows, 10).rows)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("mkdir", "touch"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr(os, "utime", refuse)
    assert list(made(rows, 10).rows) == expected
    with pytest.raises(UserError, match=r"cannot be put into the cache \(Read-only file system\); set KAVA_CACHE"):
        made(rows, 11)
