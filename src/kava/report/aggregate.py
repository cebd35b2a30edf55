"""Combine several seeds of one configuration into one aggregate; runs that do not belong together raise an error that names them.

    runs = [read_run("outputs/llama1b_aug/seed_42", ["gsm8k", "svamp"]), ...]
    aggregate = combine(runs, model_name="KAVA-LLaMA-3.2-1B")

`combine` is a pure function; only `read_run` reads files.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.config import recorded_config
from kava.config.differences import differences
from kava.config.files import read_sections
from kava.config.fingerprint import MAY_CHANGE_ON_RESUME, with_later_settings, with_settled_dtype
from kava.errors import UserError
from kava.report.aggregate_file import Aggregate, DatasetSummary, SeedRun, SeedValues
from kava.results import RUN_CONFIG, Result, dataset_label, result_path, verified_result
from kava.results.statistics import summarise

DEFAULT_DATASETS = ("gsm8k", "gsm8k-hard", "svamp")
_SHOWN_DIFFERENCES = 5


@dataclass(frozen=True)
class SeedResults:
    """The results of one seed: data set -> result."""

    directory: str
    results: dict[str, Result]

    @property
    def first(self) -> Result:
        return next(iter(self.results.values()))

    @property
    def seed(self) -> int:
        return self.first.run.seed


def recorded_datasets(directory: str | Path) -> list[str]:
    """Return the names in result files of the data sets in a run's `config.yaml`; the guide's three if there is no such file.

    Raises:
        UserError: the file is not valid.
    """
    path = Path(directory) / RUN_CONFIG
    if not path.is_file():
        return list(DEFAULT_DATASETS)
    known = recorded_config(read_sections(path), str(path)).evaluation.datasets
    return [dataset_label(name, known) for name in known]


def read_run(directory: str | Path, datasets: Sequence[str]) -> SeedResults:
    """Read the result files of one seed.

    Raises:
        UserError: a file is missing or broken, or its data set, checkpoint, seed or configuration does not match.
    """
    results: dict[str, Result] = {}
    for dataset in datasets:
        path = result_path(directory, dataset)
        result = results[dataset] = verified_result(path)
        if result.dataset != dataset:
            raise UserError(f"result file {path} holds data set '{result.dataset}', not '{dataset}'; evaluate again")
        first = next(iter(results.values()))
        _refuse_different_configs([(str(directory), first), (str(path), result)])
        if result.run.seed != first.run.seed:
            raise UserError(f"{directory} mixes seeds {first.run.seed} and {result.run.seed} ({path.name}); give each seed a directory")
        if result.checkpoint and first.checkpoint and result.checkpoint.manifest != first.checkpoint.manifest:
            at = f"{first.checkpoint.path} and {result.checkpoint.path}"
            raise UserError(f"{directory} mixes results of two checkpoints ({at}); evaluate again those that are not of the best one")
    return SeedResults(str(directory), results)


def combine(runs: Sequence[SeedResults], model_name: str | None = None) -> Aggregate:
    """Compute the mean, sample standard deviation and t interval per data set over the seeds.

    Raises:
        UserError: a seed occurs twice, or the runs differ in a setting other than the seed, in the training data or in the questions.
    """
    _refuse_repeated_seeds(runs)
    _refuse_different_configs([(run.directory, run.first) for run in runs])
    _refuse_different_training_data(runs)
    runs = sorted(runs, key=lambda run: run.seed)
    first = runs[0].first
    return Aggregate(
        num_seeds=len(runs),
        datasets={name: _summary(name, runs) for name in runs[0].results},
        model_name=model_name or first.run.name or first.run.model,
        method=first.run.method,
        model=first.run.model,
        train_dataset=str(first.run.config.get("dataset", {}).get("name", "unknown")),
        trained_on=first.trained_on,
        seeds=[run.seed for run in runs],
        config_fingerprint=first.run.fingerprint,
        config=_without_seed(first.run.config),
        runs=[_seed_run(run) for run in runs],
    )


def entry_name(runs: Sequence[SeedResults], model_name: str | None) -> str:
    """Return the top-level key of the aggregate: the name of the configuration, or else the model name given by the user.

    Raises:
        UserError: neither is known.
    """
    name = runs[0].first.run.name or model_name
    if not name:
        raise UserError("the results carry no configuration name; give one with --model_name")
    return name


def _seed_run(run: SeedResults) -> SeedRun:
    checkpoint = run.first.checkpoint
    return SeedRun(
        seed=run.seed,
        directory=Path(run.directory).as_posix(),
        provenance=run.first.provenance,
        checkpoint=checkpoint.manifest if checkpoint else None,
    )


def _summary(dataset: str, runs: Sequence[SeedResults]) -> DatasetSummary:
    results = [run.results[dataset] for run in runs]
    first = results[0]
    for run, result in zip(runs, results, strict=True):
        if (result.data.fingerprint, result.metrics.total) != (first.data.fingerprint, first.metrics.total):
            raise UserError(
                f"'{dataset}' is not the same data in {runs[0].directory} ({first.metrics.total} questions, {first.data.fingerprint}) "
                f"and {run.directory} ({result.metrics.total} questions, {result.data.fingerprint}); evaluate both on the same questions"
            )
    if len(sizes := {size for result in results if (size := result.provenance.get("batch_size")) is not None}) > 1:
        asked = " and of ".join(map(str, sorted(sizes)))
        raise UserError(f"'{dataset}' was answered in batches of {asked}, whose times have no mean; evaluate again with one --batch_size")
    metrics = [result.metrics for result in results]
    summaries = {
        "accuracy": summarise([m.accuracy for m in metrics], least=1 / first.metrics.total),
        "forward_passes": summarise([m.forward_passes for m in metrics]),
        "generated_tokens": summarise([m.generated_tokens for m in metrics]),
        "seconds_per_question": summarise([m.seconds_per_question for m in metrics]),
    }
    means = {f"{name}_mean": _tidy(summary.mean) for name, summary in summaries.items()}
    deviations = {f"{name}_std": None if summary.std is None else _tidy(summary.std) for name, summary in summaries.items()}
    interval = summaries["accuracy"].ci95
    cache = [m.cache_bytes_per_question for m in metrics if m.cache_bytes_per_question is not None]
    return DatasetSummary.model_validate(
        means
        | deviations
        | {
            "accuracy_ci95": None if interval is None else [_tidy(bound) for bound in interval],
            "cache_bytes_per_question_mean": summarise(cache).mean if len(cache) == len(metrics) else None,
            "n": len(runs),
            "questions": first.metrics.total,
            "data": first.data,
            "per_seed": [_seed_values(result) for result in results],
        }
    )


def _tidy(value: float) -> float:
    """Remove floating-point rounding error: 0.004, not 0.003999999999999948."""
    return round(value, 12)


def _seed_values(result: Result) -> SeedValues:
    return SeedValues(seed=result.run.seed, **result.metrics.model_dump(include=set(SeedValues.model_fields)))


def _refuse_repeated_seeds(runs: Iterable[SeedResults]) -> None:
    seen: dict[int, str] = {}
    for run in runs:
        if run.seed in seen:
            raise UserError(f"{seen[run.seed]} and {run.directory} both hold seed {run.seed}; give each seed once")
        seen[run.seed] = run.directory


def _refuse_different_configs(named: Sequence[tuple[str, Result]]) -> None:
    name_a, a = named[0]
    for name_b, b in named[1:]:
        found = differences([_identity(a), _identity(b)])
        if found:
            shown = "; ".join(f"{key}: {values[0]!r} against {values[1]!r}" for key, values in list(found.items())[:_SHOWN_DIFFERENCES])
            more = f"; and {len(found) - _SHOWN_DIFFERENCES} more" if len(found) > _SHOWN_DIFFERENCES else ""
            raise UserError(f"{name_a} and {name_b} are runs of different configurations and cannot be aggregated: {shown}{more}")


def _refuse_different_training_data(runs: Sequence[SeedResults]) -> None:
    """Refuse runs with different training data: the content of a file can change while its name and the configuration stay the same."""
    known = [(run.directory, content) for run in runs if (content := run.first.trained_on) is not None]
    for directory, content in known[1:]:
        if content != known[0][1]:
            name = runs[0].first.run.config.get("dataset", {}).get("name")
            raise UserError(
                f"{known[0][0]} and {directory} were trained on different data under one name, '{name}' ({known[0][1]} and {content}): "
                "they cannot be aggregated; train both on the same rows"
            )


def _identity(result: Result) -> dict[str, Any]:
    run, config = result.run, with_settled_dtype(_without_seed(result.run.config))
    for section, key in (setting.split(".") for setting in MAY_CHANGE_ON_RESUME):
        if isinstance(config.get(section), dict):
            config[section].pop(key, None)
    return {"run": {"name": run.name, "method": run.method, "model": run.model}} | config


def _without_seed(config: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(config)
    if isinstance(config.get("training"), dict):
        config["training"].pop("seed", None)
    return with_later_settings(config)
