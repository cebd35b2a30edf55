"""Everything below an outputs directory that a report can show: results by configuration, training curves, explanations.

found = find_runs("outputs")

What is broken is named in `problems` and left out: one truncated file of an unfinished run must not hide the others.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kava.config.differences import differences
from kava.errors import UserError
from kava.experiment.aggregate import SeedResults, combine
from kava.experiment.aggregate_file import Aggregate
from kava.explain.record import EXPLANATION, Explanation, read_explanation
from kava.results import Result, Row, read_result, read_rows, rows_path
from kava.train.run_directory import LOGS

_SEED = re.compile(r"(^|[/_-])seed[_-]?\d+$")
# Settings that change what is logged or how fast it runs, but not what is learnt.
_BOOKKEEPING = ("training.logging_steps", "training.eval_steps", "training.save_", "training.num_workers", "evaluation.", "system.")


@dataclass(frozen=True)
class Group:
    """All seeds of one configuration.

    Attributes:
        path: where they lie, below the outputs directory and without the seed.
        aggregate: means over the seeds, for the data sets that every seed has.
        rows: data set -> the questions of all seeds, one after the other; empty where there is no per-question file.
    """

    path: str
    aggregate: Aggregate
    rows: dict[str, list[Row]]

    @property
    def family(self) -> tuple[str, str, str, str]:
        """Groups of one family differ in ablations only: model, training data, form of the traces, method."""
        dataset = self.aggregate.config.get("dataset", {})
        return self.aggregate.model, self.aggregate.train_dataset, str(dataset.get("cot_type", "")), self.aggregate.method


@dataclass(frozen=True)
class Curve:
    """Scalars of one training run: `scalars[tag]` is a list of (step, value); `path` as a group's, `name` the run's own directory."""

    path: str
    name: str
    scalars: dict[str, list[tuple[int, float]]]


@dataclass
class Found:
    """What is there."""

    groups: list[Group] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    explanations: list[tuple[str, Explanation]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_runs(outputs: str | Path) -> Found:
    """Read all that is below a directory.

    Raises:
        UserError: no such directory, or nothing in it to report.
    """
    root = Path(outputs)
    if not root.is_dir():
        raise UserError(f"{outputs} is not a directory; give the one that holds the runs, such as outputs/")
    found = Found()
    _read_results(root, found)
    for path in sorted(root.rglob(EXPLANATION)):
        try:
            found.explanations.append((_below(path.parent, root), read_explanation(path)))
        except UserError as error:
            found.problems.append(str(error))
    for logs in sorted({path.parent for path in root.rglob(f"{LOGS}/events.out.tfevents.*")}):
        scalars = read_scalars(logs)
        if any(tag.startswith("train/") for tag in scalars):
            found.curves.append(Curve(_without_seed(_below(logs.parent, root)), logs.parent.name, scalars))
    if not (found.groups or found.curves or found.explanations):
        problems = f": {found.problems[0]}" if found.problems else "; train, evaluate or explain first"
        raise UserError(f"{outputs} holds no results_*.yaml, {LOGS}/ or {EXPLANATION} to report{problems}")
    return found


def read_scalars(logs: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars of a TensorBoard directory."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    accumulator = EventAccumulator(str(logs), size_guidance={SCALARS: 0})
    accumulator.Reload()
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()[SCALARS]}


def variants(groups: Sequence[Group]) -> list[tuple[Group, dict[str, Any]]]:
    """Each group with the settings in which it departs from the centre of its family (nothing for the centre itself).

    The centre is the configuration with the fewest departures from all others: an ablation changes one thing at a time.
    """
    centres = {}
    for name in dict.fromkeys(group.family for group in groups):
        family = [group for group in groups if group.family == name]
        distances = [sum(len(_departures(a, b)) for b in family) for a in family]
        centres[name] = family[distances.index(min(distances))]
    return [(group, _departures(centres[group.family], group)) for group in groups]


def _departures(centre: Group, group: Group) -> dict[str, Any]:
    found = differences([centre.aggregate.config, group.aggregate.config])
    return {key: values[1] for key, values in found.items() if not key.startswith(_BOOKKEEPING)}


def _read_results(root: Path, found: Found) -> None:
    results: dict[tuple[str, str], dict[Path, dict[str, Result]]] = {}
    for path in sorted(root.rglob("results_*.yaml")):
        try:
            result = read_result(path)
        except UserError as error:
            found.problems.append(str(error))
            continue
        key = (_without_seed(_below(path.parent, root)), result.run.config_fingerprint)
        results.setdefault(key, {}).setdefault(path.parent, {})[result.dataset] = result
    for (name, _), directories in results.items():
        shared = set.intersection(*(set(own) for own in directories.values()))
        missing = sorted({dataset for own in directories.values() for dataset in own} - shared)
        if missing:
            found.problems.append(f"{name}: not every seed is evaluated on {', '.join(missing)}; left out")
        if not shared:
            continue
        runs = [SeedResults(str(path), {k: v for k, v in own.items() if k in shared}) for path, own in directories.items()]
        try:
            aggregate = combine(runs)
        except UserError as error:
            found.problems.append(str(error))
            continue
        found.groups.append(Group(name, aggregate, {d: _rows(list(directories), d, found) for d in aggregate.datasets}))


def _rows(directories: list[Path], dataset: str, found: Found) -> list[Row]:
    rows: list[Row] = []
    for directory in directories:
        path = rows_path(directory / f"results_{dataset}.yaml")
        try:
            rows += read_rows(path) if path.exists() else []
        except UserError as error:
            found.problems.append(str(error))
    return rows


def _below(path: Path, root: Path) -> str:
    relative = path.relative_to(root).as_posix()
    return root.resolve().name if relative == "." else relative


def _without_seed(name: str) -> str:
    return _SEED.sub("", name) or name
