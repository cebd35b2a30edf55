"""Find everything below an outputs directory that a report can show: results by configuration, training curves, explanations.

found = find_runs("outputs")

Broken files, results of another checkpoint and partial evaluations are left out and named in `problems`, so that one truncated file of
an unfinished run does not hide the others.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kava.errors import UserError
from kava.explain.record import EXPLANATION, Explanation, read_explanation
from kava.report.aggregate_file import INCLUDE_PARTIAL, below
from kava.report.group import Group, group_of
from kava.results import Verified, read_verified
from kava.train.run_directory import LOGS

# Directory of a seed -> data set -> result.
Seeds = dict[str, dict[str, Verified]]
# Name and configuration of a group -> its seeds.
Runs = dict[tuple[str, str], Seeds]
_SEED = re.compile(r"(^|[/_-])seed[_-]?\d+$")


@dataclass(frozen=True)
class Curve:
    """Scalars of one training run: `scalars[tag]` is a list of (step, value), `path` is as in `Group`, `name` is the run's directory."""

    path: str
    name: str
    scalars: dict[str, list[tuple[int, float]]]


@dataclass
class Found:
    """What `find_runs` found, and the problems with what it left out."""

    groups: list[Group] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    explanations: list[tuple[str, Explanation]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_runs(outputs: str | Path, include_partial: bool = False) -> Found:
    """Read all runs below a directory; `include_partial` adds quick tests and evaluations on a part of the test set.

    Raises:
        UserError: the directory does not exist, or it holds nothing to report.
    """
    root = Path(outputs)
    if not root.is_dir():
        raise UserError(f"{outputs} is not a directory; give the one that holds the runs, such as outputs/")
    found = Found()
    _read_results(root, found, include_partial)
    for path in sorted(root.rglob(EXPLANATION)):
        try:
            found.explanations.append((below(path.parent, root), read_explanation(path)))
        except UserError as error:
            found.problems.append(str(error))
    for logs in sorted({path.parent for path in root.rglob(f"{LOGS}/events.out.tfevents.*")}):
        scalars = read_scalars(logs)
        if any(tag.startswith("train/") for tag in scalars):
            found.curves.append(Curve(_without_seed(logs.parent, root), logs.parent.name, scalars))
    if not (found.groups or found.curves or found.explanations):
        problems = f": {found.problems[0]}" if found.problems else "; train, evaluate or explain first"
        raise UserError(f"{outputs} holds no results_*.yaml, {LOGS}/ or {EXPLANATION} to report{problems}")
    return found


def read_scalars(logs: Path) -> dict[str, list[tuple[int, float]]]:
    """Read all scalars of a TensorBoard directory: tag -> list of (step, value), a value per step, in the order of the steps."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    accumulator = EventAccumulator(str(logs), size_guidance={SCALARS: 0})
    accumulator.Reload()
    # A run that was killed and resumed has logged some steps twice; the later value is that of the weights that it went on with.
    return {tag: sorted({event.step: event.value for event in accumulator.Scalars(tag)}.items()) for tag in accumulator.Tags()[SCALARS]}


def _read_results(root: Path, found: Found, include_partial: bool) -> None:
    runs: Runs = {}
    for path in sorted(root.rglob("results_*.yaml")):
        try:
            verified = read_verified(path)
        except UserError as error:
            found.problems.append(str(error))
            continue
        result = verified.result
        if result.partial and not include_partial:
            found.problems.append(f"result file {path}: {result.partial}; {INCLUDE_PARTIAL}")
            continue
        key = (_without_seed(path.parent, root), result.run.fingerprint)
        own = runs.setdefault(key, {}).setdefault(str(path.parent), {})
        if result.dataset in own:
            found.problems.append(f"result file {path}: {own[result.dataset].path.name} is one of the same run and data set; left out")
            continue
        own[result.dataset] = verified
    for name, seeds in _each_seed_once(runs, root, found.problems):
        shared = set.intersection(*(set(own) for own in seeds.values()))
        missing = sorted({dataset for own in seeds.values() for dataset in own} - shared)
        if missing:
            found.problems.append(f"{name}: not every seed is evaluated on {', '.join(missing)}; left out")
        if not shared:
            continue
        complete = {place: {dataset: own[dataset] for dataset in own if dataset in shared} for place, own in seeds.items()}
        try:
            group, problems = group_of(name, complete)
        except UserError as error:
            found.problems.append(str(error))
            continue
        found.groups.append(group)
        found.problems += problems


def _each_seed_once(runs: Runs, root: Path, problems: list[str]) -> Iterator[tuple[str, Seeds]]:
    """Yield the name and the seeds of each group; directories of one seed, such as `outputs/seed_<job>`, become groups of their own."""
    for (name, _), seeds in runs.items():
        held = {place: next(iter(own.values())).result.run.seed for place, own in seeds.items()}
        if len(set(held.values())) == len(held):
            yield name, seeds
            continue
        seed, often = Counter(held.values()).most_common(1)[0]
        problems.append(f"{name}: the mean over its seeds, because {often} directories hold seed {seed}; each directory is shown by itself")
        for place, own in seeds.items():
            yield below(Path(place), root), {place: own}


def _without_seed(path: Path, root: Path) -> str:
    """Return the place of a run below `root` without the directory of its seed; the name of `root` where nothing else is left."""
    return _SEED.sub("", below(path, root)) or root.resolve().name
