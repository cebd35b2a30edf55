"""`aggregated_results.{yaml,json}`: the results of several seeds of one configuration, with the reproduction guide's keys first.

    llama1b_aug:
      num_seeds: 3
      datasets: {gsm8k: {accuracy_mean: 0.565, accuracy_std: 0.004, forward_passes_mean: 6.9, forward_passes_std: 0.1, ...}}

Everything else that is needed to trace the numbers (per-seed values, data, configuration, provenance) follows in the same entry.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field

from kava.errors import UserError
from kava.results import (
    BEST_CHECKPOINT,
    DataInfo,
    Record,
    Sections,
    checkpoint_hash,
    parse_record,
    partial_reason,
    read_mapping,
    write_text,
)

AGGREGATE_FORMAT: Literal["kava.aggregate/1"] = "kava.aggregate/1"
AGGREGATE_YAML = "aggregated_results.yaml"
AGGREGATE_JSON = "aggregated_results.json"
INCLUDE_PARTIAL = "--include_partial includes it, marked"
_CURE = "aggregate the seeds again"


def _cut(bounds: list[float]) -> list[float]:
    """Return the bounds of an accuracy within 0 and 1, beyond which Student's t and rounding can reach."""
    return [min(max(bound, 0.0), 1.0) for bound in bounds]


Bounds = Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_cut)]


class SeedValues(Record):
    """Metrics of one seed on one data set; the accuracy and its Wilson interval are fractions."""

    seed: int
    accuracy: float
    accuracy_ci95: Bounds
    forward_passes: float
    generated_tokens: float
    seconds_per_question: float
    cache_bytes_per_question: float | None = None


class DatasetSummary(Record):
    """One data set over `n` seeds: means, sample standard deviations (null for one seed) and the t interval of the accuracy."""

    accuracy_mean: float = Field(ge=0, le=1)
    accuracy_std: float | None = Field(ge=0)
    forward_passes_mean: float = Field(ge=0)
    forward_passes_std: float | None = Field(ge=0)
    n: int = Field(ge=1)
    accuracy_ci95: Bounds | None
    generated_tokens_mean: float = Field(ge=0)
    generated_tokens_std: float | None = Field(ge=0)
    seconds_per_question_mean: float = Field(ge=0)
    seconds_per_question_std: float | None = Field(ge=0)
    cache_bytes_per_question_mean: float | None = Field(None, ge=0)
    questions: int = Field(ge=1)
    data: DataInfo
    per_seed: list[SeedValues] = Field(min_length=1)


class SeedRun(Record):
    """The directory of one seed's results, the provenance of its first result and the hash of its checkpoint's manifest."""

    seed: int
    directory: str
    provenance: dict[str, Any]
    checkpoint: str | None = None


class Aggregate(Record):
    """All seeds of one configuration. `config` leaves out the seed."""

    num_seeds: int = Field(ge=1)
    datasets: dict[str, DatasetSummary] = Field(min_length=1)
    model_name: str
    method: str
    model: str
    train_dataset: str
    trained_on: str | None = None
    seeds: list[int] = Field(min_length=1)
    config_fingerprint: str
    config: Sections
    runs: list[SeedRun]
    format: Literal["kava.aggregate/1"] = AGGREGATE_FORMAT

    def partial(self, dataset: str) -> str:
        """Return why the result on a data set is not a full evaluation; see `partial_reason`."""
        return partial_reason(self.config, self.datasets[dataset].questions)


def write_aggregates(aggregates: Mapping[str, Aggregate], json_path: str | Path | None, yaml_path: str | Path | None) -> None:
    """Write the same content as JSON and as YAML; a format without a path is skipped.

    Raises:
        UserError: a file cannot be written.
    """
    content = {name: aggregate.model_dump(mode="json") for name, aggregate in aggregates.items()}
    if json_path is not None:
        write_text(json_path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if yaml_path is not None:
        write_text(yaml_path, to_yaml(aggregates))


def to_yaml(aggregates: Mapping[str, Aggregate]) -> str:
    """Return the text of `aggregated_results.yaml`."""
    content = {name: aggregate.model_dump(mode="json") for name, aggregate in aggregates.items()}
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=140))


def read_aggregates(path: str | Path) -> dict[str, Aggregate]:
    """Read an aggregate file (YAML or JSON) and return its entries: configuration name -> aggregate.

    Raises:
        UserError: the file is missing, broken or empty; the message names the file, the field and the solution.
    """
    content = read_mapping(path, "aggregate", _CURE)
    if not content:
        raise UserError(f"aggregate {path} is empty; {_CURE}")
    return {str(name): parse_record(Aggregate, entry, f"aggregate {path}, entry '{name}'", _CURE) for name, entry in content.items()}


def find_aggregates(input_dir: str | Path, include_partial: bool = False) -> tuple[list[tuple[Path, str, Aggregate]], list[str]]:
    """Return every entry of every `aggregated_results.yaml` at or below a directory, sorted by path: (file, configuration name, aggregate).

    Broken files and those of which a seed was retrained later are left out, and so are quick tests and evaluations on a part of the test
    set unless `include_partial` is set; the second list names them.

    Raises:
        UserError: no such directory, no such file in it, or none that is left.
    """
    if not Path(input_dir).is_dir():
        raise UserError(f"{input_dir} is not a directory; give the one that holds the runs, such as outputs/")
    files = sorted(Path(input_dir).rglob(AGGREGATE_YAML))
    if not files:
        raise UserError(f"no {AGGREGATE_YAML} below {input_dir}; run run_multi_seed.py or aggregate_multi_seed.py first")
    found, problems = [], []
    for file in files:
        try:
            entries = read_aggregates(file)
            _refuse_outdated(file, entries.values())
        except UserError as error:
            problems.append(str(error))
            continue
        for name, aggregate in entries.items():
            whole = {dataset: data for dataset, data in aggregate.datasets.items() if include_partial or not aggregate.partial(dataset)}
            problems += [
                f"{file}, {name} on {dataset}: {aggregate.partial(dataset)}; {INCLUDE_PARTIAL}"
                for dataset in aggregate.datasets
                if dataset not in whole
            ]
            if whole:
                found.append((file, name, aggregate.model_copy(update={"datasets": whole})))
    if not found:
        raise UserError(f"no full evaluation below {input_dir}: {problems[0]}")
    return found, problems


def distinct(names: Sequence[str], files: Sequence[Path], input_dir: str | Path) -> list[str]:
    """Return the name of each entry of `find_aggregates`; where several have one, the folder of the file in its place."""
    root = Path(input_dir)
    return [name if names.count(name) == 1 else below(file.parent, root) for name, file in zip(names, files, strict=True)]


def below(path: Path, root: Path) -> str:
    """Return a path relative to `root`, or the name of `root` for itself."""
    relative = path.relative_to(root).as_posix()
    return root.resolve().name if relative == "." else relative


def _refuse_outdated(file: Path, aggregates: Iterable[Aggregate]) -> None:
    """Refuse a file if one of its seeds was retrained later: its numbers belong to the old checkpoint."""
    for run in (run for aggregate in aggregates for run in aggregate.runs):
        # The seeds usually lie beside the file. Their recorded path may be relative to a directory that is not the reader's.
        beside = file.parent / Path(run.directory).name
        directory = beside if beside.is_dir() else Path(run.directory)
        found = checkpoint_hash(directory / BEST_CHECKPOINT)
        if None not in (run.checkpoint, found) and found != run.checkpoint:
            raise UserError(f"aggregate {file}: {directory} was retrained since; evaluate it and {_CURE}")
