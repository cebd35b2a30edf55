"""Record of one evaluation: the metrics, the questions and the checkpoint; and a row for each question."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from kava.config import renewed_fingerprint
from kava.config.files import read_sections
from kava.config.quick_test import is_quick_test
from kava.errors import UserError
from kava.results.files import Record, Sections, checked_name, parse_record, read_mapping, write_text
from kava.runtime.text import read_text

RESULT_FORMAT: Literal["kava.results/1"] = "kava.results/1"
BEST_CHECKPOINT = "best_checkpoint"
TRAINING_DONE = "training_done.json"
RUN_CONFIG = "config.yaml"
CURE = "evaluate again to write a new one"


class Metrics(Record):
    """Metrics of an evaluation. `accuracy` is a fraction; the per-question figures are means over the `total` questions."""

    accuracy: float = Field(ge=0, le=1)
    accuracy_ci95: list[float] = Field(min_length=2, max_length=2, description="Wilson interval, fractions")
    correct: int = Field(ge=0)
    total: int = Field(ge=1)
    forward_passes: float = Field(ge=0, description="backbone calls per question")
    generated_tokens: float = Field(ge=0)
    seconds_per_question: float = Field(ge=0)
    cache_bytes_per_question: float | None = Field(None, ge=0)
    correct_close: int | None = Field(None, ge=0, description="within evaluation.tolerance of the answer (0.001 as a default)")
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
    """The run that was evaluated. `name` is the configuration's name (its file without the suffix), `config` the full configuration."""

    name: str | None = None
    method: str
    seed: int = Field(ge=0)
    config: Sections
    config_fingerprint: str
    model: str

    @property
    def fingerprint(self) -> str:
        """`config_fingerprint` as this version computes it: equal for runs that may be aggregated."""
        return renewed_fingerprint(self.config_fingerprint, self.config)


class DataInfo(Record):
    """The questions of an evaluation: their source, the part that was used (`split`, in words) and a hash of their content.

    `asked` is the name or path that the user gave; null in results of earlier versions.
    """

    source: str
    split: str
    fingerprint: str
    rows: int = Field(ge=1)
    bad_rows: int = Field(0, ge=0)
    asked: str | None = None


class CheckpointInfo(Record):
    """The checkpoint: the directory as given, and the hash of its manifest (`checkpoint_hash`; null if it has none)."""

    path: str
    manifest: str | None


class Result(Record):
    """One evaluation of one checkpoint on one data set.

    `answers` is the SHA-256 of the per-question file next to the result. It and `checkpoint` are null in results of earlier versions.
    """

    format: Literal["kava.results/1"] = RESULT_FORMAT
    dataset: str = Field(min_length=1)
    metrics: Metrics
    run: RunInfo
    data: DataInfo
    checkpoint: CheckpointInfo | None = None
    answers: str | None = None
    provenance: dict[str, Any]

    @property
    def partial(self) -> str:
        """Why this is not a full evaluation; see `partial_reason`."""
        return partial_reason(self.run.config, self.data.rows)

    @property
    def trained_on(self) -> str | None:
        """Hash of the training data's content, if the checkpoint recorded it."""
        training = self.provenance.get("training")
        data = training.get("data") if isinstance(training, dict) else None
        found = data.get("fingerprint") if isinstance(data, dict) else None
        return found if isinstance(found, str) else None


class Row(Record):
    """One question with its answer; `prediction` is null if the text contains no number.

    `steps` is the number of steps of the gold chain of thought (null if the data set has none), `confidence` the probability that the
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


def partial_reason(config: Mapping[str, Any], rows: int) -> str:
    """Return why a result does not cover a full run on a full test set, such as `first 20 questions`; empty if it does."""
    evaluation = config.get("evaluation")
    limit = evaluation.get("max_samples") if isinstance(evaluation, Mapping) else None
    parts = ["quick test"] if is_quick_test(config) else []
    if isinstance(limit, int) and rows >= limit:
        parts.append(f"first {rows} question{'s' if rows > 1 else ''}")
    return ", ".join(parts)


def dataset_label(asked: str, configured: Mapping[str, str]) -> str:
    """Return the name of a data set in result files: the name that was given, or the stem of a path.

    The name of a file that only shares its stem with one of the `configured` data sets (name -> source) includes its folder: a result on
    `elsewhere/test.jsonl` is not a result on `test`.
    """
    name = asked
    if asked not in configured and Path(asked).exists():
        path = Path(asked).resolve()
        name = path.stem
        if name in configured and configured[name] not in (asked, str(path)):
            name = f"{path.parent.name or 'file'}-{name}"
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-") or "dataset"


def result_path(run_dir: str | Path, dataset: str) -> Path:
    """Return the path of `results_<dataset>.yaml` in the directory of a run."""
    return Path(run_dir) / f"results_{checked_name(dataset, 'data set')}.yaml"


def rows_path(result: str | Path) -> Path:
    """Return the path of the per-question file next to a result file."""
    return Path(result).with_suffix(".jsonl")


def trained_fingerprint(run_dir: str | Path, recorded: str) -> str:
    """Return the fingerprint of the finished training in a directory, whose marker holds `recorded`, as this version computes it."""
    try:
        content = read_sections(Path(run_dir) / RUN_CONFIG)
    except UserError:
        return recorded
    return renewed_fingerprint(recorded, content)


def check_result_path(result: str | Path) -> None:
    """Check that a result and its rows can be written to their paths.

    Raises:
        UserError: the path has no file name or is that of the rows (`.jsonl`), is a directory, or lies below a file.
    """
    path = Path(result)
    if not path.name or path.suffix == ".jsonl":
        raise UserError(f"cannot write the result to '{result}': give a file such as results_gsm8k.yaml; its rows go beside it as .jsonl")
    check_output_paths(path, rows_path(path))


def check_output_paths(*places: Path) -> None:
    """Check that files can be written to these paths, before the work that produces them.

    Raises:
        UserError: a path is a directory, or lies below a file.
    """
    for place in places:
        if place.is_dir():
            raise UserError(f"cannot write {place}: it is a directory; choose another output path")
        above = next(parent for parent in place.absolute().parents if parent.exists())
        if not above.is_dir():
            raise UserError(f"cannot write {place}: {above} is a file; choose another output path")


def write_result(path: str | Path, result: Result) -> None:
    """Write a result file atomically: YAML, or JSON in a file called `.json`.

    Raises:
        UserError: the file cannot be written.
    """
    content = result.model_dump(mode="json")
    if Path(path).suffix == ".json":
        write_text(path, json.dumps(content, indent=2) + "\n")
    else:
        write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=140))


def read_result(path: str | Path) -> Result:
    """Read and check a result file.

    Raises:
        UserError: the file is missing, truncated, not YAML or has wrong fields; the message names the file, the field and the solution.
    """
    return parse_record(Result, read_mapping(path, "result file", CURE), f"result file {path}", CURE)


def write_rows(path: str | Path, rows: Iterable[Row]) -> str:
    """Write per-question rows atomically, one JSON object per line, and return the SHA-256 for `Result.answers`."""
    text = "".join(json.dumps(row.model_dump(), ensure_ascii=False) + "\n" for row in rows)
    write_text(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def read_rows(path: str | Path) -> list[Row]:
    """Read per-question rows.

    Raises:
        UserError: the file is missing or broken; the message names the file, the line and the solution.
    """
    rows = []
    # Only "\n" ends a row: a generated text may contain other characters that str.splitlines treats as line ends.
    for number, line in enumerate(read_text(path, "per-question file", CURE).split("\n"), start=1):
        if line.strip():
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"per-question file {path}, line {number}: not JSON ({error}); {CURE}") from None
            rows.append(parse_record(Row, content, f"per-question file {path}, line {number}", CURE))
    return rows


def by_steps(rows: Iterable[Row]) -> dict[int, list[Row]]:
    """Group rows by the number of steps of their gold chain of thought, fewest first; rows without one are left out."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        if row.steps is not None:
            found.setdefault(row.steps, []).append(row)
    return dict(sorted(found.items()))
