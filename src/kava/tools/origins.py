"""Where the numbers in a file come from: settings, data, code, machine and command line, as tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kava.config.differences import ABSENT, flatten
from kava.errors import UserError
from kava.explain.record import EXPLANATION_FORMAT, read_explanation
from kava.report.aggregate_file import AGGREGATE_FORMAT, read_aggregates
from kava.report.table import Table, settings_table
from kava.results import BEST_CHECKPOINT, RESULT_FORMAT, read_mapping, read_result
from kava.runtime.atomic import FORMAT
from kava.tools.bench.record import FORMAT as BENCH_FORMAT
from kava.tools.bench.record import read_bench


def origin_tables(path: Path, settings: bool = False) -> list[Table]:
    """Return one table per part of a file.

    Args:
        path: a result, an aggregate, an explanation or a benchmark, or the directory of a checkpoint or of a run.
        settings: for an aggregate: also show all settings of the runs.

    Raises:
        UserError: the file is missing or broken, or has an unknown format.
    """
    if path.is_dir():
        from kava.checkpoint import KAVA_CONFIG  # loads torch, so only where it is needed

        best = path / BEST_CHECKPOINT
        path = (best if best.is_dir() else path) / KAVA_CONFIG
    content = read_mapping(path, "file", "give a result, an aggregate, an explanation, a benchmark or a checkpoint")
    content = _checked(path, content)
    parts = _aggregated(content, settings) if _is_aggregate(content) else _parts(content)
    return [settings_table(title, {key: [value] for key, value in flatten(part).items()}, ["value"]) for title, part in parts.items()]


def _checked(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a file that says where it comes from, after checking its format.

    Raises:
        UserError: the file is broken or has an unknown format.
    """
    if _is_aggregate(content):
        read_aggregates(path)
        return content
    # The measurements are long and are shown by other commands, so they are left out.
    readers: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
        RESULT_FORMAT: (read_result, ()),
        EXPLANATION_FORMAT: (read_explanation, ("questions", "mean_similarity", "intermediate", "convergence", "interventions")),
        BENCH_FORMAT: (read_bench, ("measured",)),
        FORMAT: (lambda path: None, ()),
    }
    kind = content.get("format")
    if not isinstance(kind, str) or kind not in readers:
        raise UserError(
            f"{path} is neither a result, an aggregate, an explanation, a benchmark nor a checkpoint's configuration; 'format' is {kind!r}"
        )
    read, left_out = readers[kind]
    read(path)
    return _without(content, *left_out)


def _without(content: dict[str, Any], *left_out: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in left_out}


def _is_aggregate(content: dict[str, Any]) -> bool:
    return any(isinstance(entry, dict) and entry.get("format") == AGGREGATE_FORMAT for entry in content.values())


def _parts(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return title -> settings, with one part per top-level mapping."""
    single = {key: value for key, value in content.items() if not isinstance(value, dict)}
    return ({"file": single} if single else {}) | {name: value for name, value in content.items() if isinstance(value, dict)}


def _aggregated(content: dict[str, Any], settings: bool) -> dict[str, dict[str, Any]]:
    """Return title -> content of an aggregate, of what its seeds share, and of each seed; `settings` includes the long configuration."""
    parts: dict[str, dict[str, Any]] = {}
    for name, entry in content.items():
        seeds = [_without_repeats(flatten(run)) for run in entry["runs"]]
        same = {key: value for key, value in seeds[0].items() if all(seed.get(key, ABSENT) == value for seed in seeds)}
        left_out = ("runs",) if settings else ("runs", "config")
        parts[name] = {key: value for key, value in entry.items() if key not in left_out} | {"datasets": _without_seeds(entry["datasets"])}
        parts[f"{name}, every seed"] = same
        parts |= {f"{name}, seed {seed['seed']}": {k: v for k, v in seed.items() if k not in same} for seed in seeds if len(seeds) > 1}
    return parts


def _without_repeats(run: dict[str, Any]) -> dict[str, Any]:
    """Drop training provenance that repeats that of the evaluation: usually both ran on one machine."""
    twice = "provenance.training.provenance."
    return {key: value for key, value in run.items() if not key.startswith(twice) or run.get("provenance." + key[len(twice) :]) != value}


def _without_seeds(datasets: dict[str, Any]) -> dict[str, Any]:
    """Keep the means, and only the accuracy of each seed."""
    return {
        name: _without(summary, "per_seed", "data") | {"per_seed_accuracy": [seed["accuracy"] for seed in summary["per_seed"]]}
        for name, summary in datasets.items()
    }
