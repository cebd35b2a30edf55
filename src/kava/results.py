"""The files of a run: their names, and the one reader and writer of results.

    write_rows(rows_path(path), rows); write_result(path, result)     # in this order: the result marks the evaluation as done
    result = read_result("outputs/llama1b_aug/seed_42/results_gsm8k.yaml")

`results_<dataset>.yaml` carries the metrics and everything needed to trace them; `results_<dataset>.jsonl` beside it has a row for
each question.
"""

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kava.config.overrides import is_safe_name
from kava.config.strict_yaml import YAML_ERRORS, load_yaml
from kava.errors import UserError
from kava.runtime.text import read_text

RESULT_FORMAT: Literal["kava.results/1"] = "kava.results/1"
BEST_CHECKPOINT = "best_checkpoint"
TRAINING_DONE = "training_done.json"
# Of a file with a mapping: far above what any of ours needs.
MAX_DEPTH, MAX_VALUES = 50, 1_000_000
_CURE = "evaluate again to write a new one"


class Record(BaseModel):
    """A strict part of a file: no unknown keys, no silent conversion, finite numbers only."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


T = TypeVar("T", bound=Record)


class Metrics(Record):
    """What an evaluation measured. `accuracy` is a fraction; the per-question figures are means over the `total` questions."""

    accuracy: float = Field(ge=0, le=1)
    accuracy_ci95: list[float] = Field(min_length=2, max_length=2, description="Wilson interval, fractions")
    correct: int = Field(ge=0)
    total: int = Field(ge=1)
    forward_passes: float = Field(ge=0, description="backbone calls per question")
    generated_tokens: float = Field(ge=0)
    seconds_per_question: float = Field(ge=0)
    cache_bytes_per_question: float | None = Field(None, ge=0)
    correct_close: int | None = Field(None, ge=0, description="within 0.001 of the answer, as GSM8K-Hard's authors compare")
    cut_off: int | None = Field(None, ge=0, description="answers that had not ended when max_new_tokens ran out")
    without_number: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _agree(self) -> "Metrics":
        if abs(self.accuracy - self.correct / self.total) > 1e-6:
            raise ValueError(f"accuracy {self.accuracy} is not correct / total = {self.correct} / {self.total}")
        low, high = self.accuracy_ci95
        if not low - 1e-9 <= self.accuracy <= high + 1e-9:
            raise ValueError(f"accuracy {self.accuracy} lies outside its interval [{low}, {high}]")
        return self


class RunInfo(Record):
    """Which run was measured. `name` is the configuration's name (its file without the ending), `config` the full configuration."""

    name: str | None = None
    method: str
    seed: int = Field(ge=0)
    config: dict[str, Any]
    config_fingerprint: str
    model: str


class DataInfo(Record):
    """Which questions: where they came from, which part of them (`split`, in words) and a hash of their content."""

    source: str
    split: str
    fingerprint: str
    rows: int = Field(ge=1)
    bad_rows: int = Field(0, ge=0)


class Result(Record):
    """One evaluation of one checkpoint on one data set."""

    format: Literal["kava.results/1"] = RESULT_FORMAT
    dataset: str = Field(min_length=1)
    metrics: Metrics
    run: RunInfo
    data: DataInfo
    provenance: dict[str, Any]


class Row(Record):
    """One question with its answer; `prediction` is null when the text holds no number.

    `steps` is the length of the gold chain of thought (null where the data set has none), `confidence` the probability that the
    model gave to its answer.
    """

    id: str
    question: str
    gold: str
    prediction: str | None
    text: str
    correct: bool
    forward_passes: int = Field(ge=0)
    generated_tokens: int = Field(ge=0)
    steps: int | None = Field(None, ge=1)
    cut_off: bool | None = None
    confidence: float | None = Field(None, ge=0, le=1)


def checked_name(name: str, what: str) -> str:
    """Return `name` if it is safe as part of a path or a command.

    Raises:
        UserError: it holds anything but letters, digits, '_', '.' and '-', begins with '-', or is only dots.
    """
    if not is_safe_name(name):
        raise UserError(f"{what} {name!r} is not a valid name: use letters, digits, '_', '.' and '-' only")
    return name


def result_path(run_dir: str | Path, dataset: str) -> Path:
    """`results_<dataset>.yaml` in the directory of a run."""
    return Path(run_dir) / f"results_{checked_name(dataset, 'data set')}.yaml"


def rows_path(result: str | Path) -> Path:
    """The per-question file beside a result file."""
    return Path(result).with_suffix(".jsonl")


def refuse_unwritable(result: str | Path) -> None:
    """See that a result and its rows have a place to be written to.

    Raises:
        UserError: the path names no file of its own, is a directory, or lies below a file.
    """
    path = Path(result)
    if not path.name or path.suffix == ".jsonl":
        raise UserError(f"cannot write the result to '{result}': give a file such as results_gsm8k.yaml; its rows go beside it as .jsonl")
    for place in (path, rows_path(path)):
        if place.is_dir():
            raise UserError(f"cannot write {place}: it is a directory; choose another output path")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"cannot write {path}: {above} is a file; choose another output path")


def write_text(path: str | Path, text: str) -> None:
    """Write a file as a whole or not at all: beside it, flushed to disk, renamed.

    Raises:
        UserError: the place cannot be written to.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}; free some space or choose another output path") from None


def write_result(path: str | Path, result: Result) -> None:
    """Write a result file atomically.

    Raises:
        UserError: the place cannot be written to.
    """
    write_text(path, yaml.safe_dump(result.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=140))


def read_result(path: str | Path) -> Result:
    """Read and check a result file.

    Raises:
        UserError: missing, truncated, not YAML or of another shape; names the file, the field and the cure.
    """
    return parse_record(Result, read_mapping(path, "result file", _CURE), f"result file {path}", _CURE)


def write_rows(path: str | Path, rows: Iterable[Row]) -> None:
    """Write per-question rows atomically, one JSON object a line."""
    write_text(path, "".join(json.dumps(row.model_dump(), ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: str | Path) -> list[Row]:
    """Read per-question rows.

    Raises:
        UserError: missing or broken; names the file, the line and the cure.
    """
    rows = []
    # Only "\n" ends a row: a generated text may hold other characters that str.splitlines takes for a line's end.
    for number, line in enumerate(read_text(path, "per-question file", _CURE).split("\n"), start=1):
        if line.strip():
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"per-question file {path}, line {number}: not JSON ({error}); {_CURE}") from None
            rows.append(parse_record(Row, content, f"per-question file {path}, line {number}", _CURE))
    return rows


def by_steps(rows: Iterable[Row]) -> dict[int, list[Row]]:
    """Rows by the number of steps of their gold chain of thought, fewest first; without those that have none."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        if row.steps is not None:
            found.setdefault(row.steps, []).append(row)
    return dict(sorted(found.items()))


def read_mapping(path: str | Path, what: str, cure: str) -> dict[str, Any]:
    """Read a YAML or JSON file that must hold a mapping.

    Raises:
        UserError: missing, unreadable, not YAML, or something else than a mapping.
    """
    text = read_text(path, what, cure)
    # YAML 1.1 takes 1e-09, which JSON writers write, for a text.
    kind, load = ("JSON", json.loads) if Path(path).suffix == ".json" else ("YAML", load_yaml)
    try:
        content = load(text)
        _refuse_odd(content)
    except YAML_ERRORS as error:
        raise UserError(f"{what} {path} is not valid {kind} ({_one_line(error)}); {cure}") from None
    if not isinstance(content, dict):
        raise UserError(f"{what} {path} holds no mapping (truncated or another kind of file); {cure}")
    return content


def parse_record(model: type[T], content: Any, where: str, cure: str) -> T:
    """Check content against a record's fields.

    Raises:
        UserError: names the first wrong fields.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc'])) or 'content'}: {_one_line(p['msg'])}" for p in error.errors()[:3]]
    except RecursionError:
        problems = ["nested too deeply"]
    raise UserError(f"{where} is broken: {'; '.join(problems)}; {cure}")


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]


def _refuse_odd(content: Any) -> None:
    """YAML can make a structure contain itself, a few lines mean more values than a machine can hold, and anything be a key.

    Raises:
        ValueError: nested too deeply, too many values, or a key that is no text.
    """
    level, count = [content], 0
    for _ in range(MAX_DEPTH):
        mappings = [part for part in level if isinstance(part, dict)]
        for key in (key for mapping in mappings for key in mapping if not isinstance(key, str)):
            raise ValueError(f"the key {key!r} is no text")
        level = [value for mapping in mappings for value in mapping.values()] + [
            value for part in level if isinstance(part, list) for value in part
        ]
        count += len(level)
        if not level:
            return
        if count > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values")
    raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
