"""`kava inspect`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass
class Inspect:
    """Where a number comes from: settings, data, code, machine and command line of whatever a command has written."""

    file: Annotated[str, tyro.conf.Positional]
    """results_<dataset>.yaml, aggregated_results.{yaml,json}, explanation.json, a benchmark's file, or the directory of a checkpoint
    or of a run."""

    def run(self) -> None:
        from rich.console import Console

        from kava.config.differences import flatten
        from kava.report.summary import settings_table
        from kava.results import BEST_CHECKPOINT, read_mapping

        path = Path(self.file)
        if path.is_dir():
            from kava.checkpoint import KAVA_CONFIG  # loads torch, so only where it is needed

            best = path / BEST_CHECKPOINT
            path = (best if best.is_dir() else path) / KAVA_CONFIG
        content = read_mapping(path, "file", "give a result, an aggregate, an explanation, a benchmark or a checkpoint")
        content = _checked(path, content)
        console = Console(highlight=False)
        for title, part in _parts(content).items():
            console.print(settings_table(title, {key: [value] for key, value in flatten(part).items()}, ["value"]))


def _checked(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The part of a file that says where it comes from, if it is one of ours.

    Raises:
        UserError: the file is broken or of another kind.
    """
    from kava.errors import UserError
    from kava.experiment.aggregate_file import AGGREGATE_FORMAT, read_aggregates
    from kava.explain.record import EXPLANATION_FORMAT, read_explanation
    from kava.results import RESULT_FORMAT, read_result
    from kava.runtime.atomic import FORMAT
    from kava.tools.bench.record import FORMAT as BENCH_FORMAT
    from kava.tools.bench.record import read_bench

    kind = content.get("format")
    if kind == RESULT_FORMAT:
        read_result(path)
    elif any(isinstance(entry, dict) and entry.get("format") == AGGREGATE_FORMAT for entry in content.values()):
        read_aggregates(path)
    elif kind == EXPLANATION_FORMAT:
        read_explanation(path)
        return _without(content, "questions", "mean_similarity", "intermediate", "convergence", "interventions")
    elif kind == BENCH_FORMAT:
        read_bench(path)
        return _without(content, "measured")
    elif kind != FORMAT:
        raise UserError(
            f"{path} is neither a result, an aggregate, an explanation, a benchmark nor a checkpoint's configuration; 'format' is {kind!r}"
        )
    return content


def _without(content: dict[str, Any], *measured: str) -> dict[str, Any]:
    """What was measured fills pages, and has commands of its own to show it."""
    return {key: value for key, value in content.items() if key not in measured}


def _parts(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Title -> settings, one part per mapping at the top; an aggregate's runs apart, so that each seed's provenance can be read."""
    single = {key: value for key, value in content.items() if not isinstance(value, dict)}
    parts = {"file": single} if single else {}
    for name, value in content.items():
        if isinstance(value, dict):
            runs = value.get("runs", []) if isinstance(value.get("runs"), list) else []
            parts[name] = {key: entry for key, entry in value.items() if not (key == "runs" and runs)}
            parts |= {f"{name}, seed {run.get('seed')}": run for run in runs if isinstance(run, dict)}
    return parts
