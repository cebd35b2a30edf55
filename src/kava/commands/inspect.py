"""`kava inspect`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass
class Inspect:
    """Where a number comes from: settings, data, code, machine and command line of a result, an aggregate or a checkpoint."""

    file: Annotated[str, tyro.conf.Positional]
    """results_<dataset>.yaml, aggregated_results.{yaml,json}, kava_config.json, or a checkpoint's directory."""

    def run(self) -> None:
        from rich.console import Console

        from kava.difference import flatten
        from kava.report.summary import settings_table
        from kava.results import read_mapping

        path = Path(self.file)
        if path.is_dir():
            from kava.checkpoint import KAVA_CONFIG  # loads torch, so only where it is needed

            path = path / KAVA_CONFIG
        content = read_mapping(path, "file", "give a result, an aggregate, or a checkpoint")
        _check(path, content)
        console = Console(highlight=False)
        for title, part in _parts(content).items():
            console.print(settings_table(title, {key: [value] for key, value in flatten(part).items()}, ["value"]))


def _check(path: Path, content: dict[str, Any]) -> None:
    """Refuse what only looks like one of our files.

    Raises:
        UserError: the file is broken or of another kind.
    """
    from kava.errors import UserError
    from kava.experiment.aggregate_file import AGGREGATE_FORMAT, read_aggregates
    from kava.results import RESULT_FORMAT, read_result

    kind = content.get("format")
    if kind == RESULT_FORMAT:
        read_result(path)
    elif any(isinstance(entry, dict) and entry.get("format") == AGGREGATE_FORMAT for entry in content.values()):
        read_aggregates(path)
    else:
        from kava.whole import FORMAT

        if kind != FORMAT:
            raise UserError(f"{path} is neither a result, an aggregate nor a checkpoint's configuration; 'format' is {kind!r}")


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
