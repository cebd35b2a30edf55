"""Encoded examples on disk: a memory-mapped Arrow file, so that only the rows of a batch become Python objects.

write_rows(path, builder.encode_each(examples))
rows = EncodedRows(path)
rows[17], len(rows), rows.lengths.total.max()
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from jaxtyping import Int

from kava.data.sequences import EncodedExample
from kava.runtime.stage import stage

# Rows that are held as Python objects at a time during writing.
BLOCK = 1000


class Lengths(NamedTuple):
    """Number of tokens in each part of each example."""

    question: Int[np.ndarray, " N"]
    trace: Int[np.ndarray, " N"]
    answer: Int[np.ndarray, " N"]

    @property
    def total(self) -> Int[np.ndarray, " N"]:
        """Total number of tokens of each example."""
        return self.question + self.trace + self.answer


def lengths_of(examples: Sequence[EncodedExample], drop_last_step: bool = False) -> Lengths:
    """Return the lengths of all parts of all examples, optionally without the last step of the trace; stored lengths are reused."""
    if isinstance(examples, EncodedRows):
        return examples.lengths._replace(trace=examples.teacher_traces(drop_last_step))
    parts = [(len(example.question), len(example.cot(drop_last_step)), len(example.answer)) for example in examples]
    return Lengths(*np.array(parts, dtype=np.int64).reshape(-1, 3).T)


def write_rows(path: Path, examples: Iterable[EncodedExample]) -> int:
    """Write encoded examples to a file and return their number."""
    import pyarrow

    ids = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema(
        [
            ("question", ids), ("steps", pyarrow.list_(ids)), ("answer", ids), ("seed", pyarrow.int64()), ("id", pyarrow.string()),
            *((name, pyarrow.int64()) for name in _LENGTHS),
        ]
    )  # fmt: skip
    remaining, count = iter(examples), 0
    reading = stage("tokenising", unit="rows")
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, schema) as writer, reading as advance:
        while block := list(islice(remaining, BLOCK)):
            columns: dict[str, Any] = {name: [getattr(example, name) for example in block] for name in _FIELDS}
            lengths = lengths_of(block)
            columns |= {"question_length": lengths.question, "trace_length": lengths.trace, "answer_length": lengths.answer}
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))
            count += len(block)
            advance(len(block))
    return count


class EncodedRows(Sequence[EncodedExample]):
    """Sequence of the encoded examples in a file written by `write_rows`.

    Args:
        path: the file. Once open, it may be deleted (not on Windows), but an unpickled copy opens it again; so each opening sets its
            time, by which the cache knows what is in use.
        kept: indices of the rows in the sequence; None: all rows.
        table: its content, if it is open.
    """

    def __init__(self, path: Path, kept: Int[np.ndarray, " N"] | None = None, table: Any = None) -> None:
        self._path = path
        self._kept = kept
        self._table = _mapped(path) if table is None else table
        columns = [self._table.column(name).to_numpy() for name in _LENGTHS]
        self.lengths = Lengths(*(column if kept is None else column[kept] for column in columns))

    def teacher_traces(self, drop_last_step: bool) -> Int[np.ndarray, " N"]:
        """Return the number of tokens in the trace that the teacher sees, for each example."""
        if not drop_last_step:
            return self.lengths.trace
        last = np.concatenate([_last_step_lengths(chunk) for chunk in self._table.column("steps").chunks])
        return self.lengths.trace - (last if self._kept is None else last[self._kept])

    def only(self, wanted: np.ndarray) -> "EncodedRows":
        """Return the rows selected by a boolean array with one entry per row."""
        rows = np.flatnonzero(wanted)
        return EncodedRows(self._path, rows if self._kept is None else self._kept[rows], self._table)

    def ids(self, first: int) -> list[str]:
        """Return the ids of the first `first` rows."""
        return [self[number].id for number in range(min(first, len(self)))]

    def __len__(self) -> int:
        return len(self._table) if self._kept is None else len(self._kept)

    @overload
    def __getitem__(self, index: int) -> EncodedExample: ...

    @overload
    def __getitem__(self, index: slice) -> list[EncodedExample]: ...

    def __getitem__(self, index: int | slice) -> EncodedExample | list[EncodedExample]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = index % len(self) if self._kept is None else int(self._kept[index])
        return EncodedExample(*(self._table.column(name)[number].as_py() for name in _FIELDS))

    def __iter__(self) -> Iterator[EncodedExample]:
        return (self[number] for number in range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle only the path and the row indices: a worker process maps the file itself."""
        return EncodedRows, (self._path, self._kept)


def _mapped(path: Path) -> Any:
    import pyarrow

    with contextlib.suppress(OSError):  # the cache may be read-only
        os.utime(path)
    with pyarrow.memory_map(str(path)) as file:
        return pyarrow.ipc.open_file(file).read_all()


def _last_step_lengths(rows: Any) -> Int[np.ndarray, " N"]:
    """Return the number of tokens in the last step of each row of a pyarrow list of lists; 0 if a row has no steps."""
    steps, tokens = rows.value_lengths().to_numpy(), rows.flatten().value_lengths().to_numpy()
    last = np.zeros(len(steps), dtype=np.int64)
    last[steps > 0] = tokens[np.cumsum(steps)[steps > 0] - 1]
    return last


_FIELDS = ("question", "steps", "answer", "seed", "id")
_LENGTHS = ("question_length", "trace_length", "answer_length")
