"""All seeds of one configuration with their per-question results: the input of every table and figure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kava.config.differences import differences
from kava.errors import UserError
from kava.report.aggregate import SeedResults, combine
from kava.report.aggregate_file import Aggregate
from kava.results import Row, verified_rows

# Settings that change logging, evaluation or speed, but not what the model learns.
_BOOKKEEPING = ("training.logging_steps", "training.eval_steps", "training.save_", "training.num_workers", "evaluation.", "system.")


@dataclass(frozen=True)
class Group:
    """All seeds of one configuration.

    Attributes:
        path: location below the outputs directory, without the seed, or the name of the aggregate.
        aggregate: means over the seeds, for the data sets that every seed has.
        rows: data set -> seed -> per-question results; a data set with a missing or broken per-question file is absent.
    """

    path: str
    aggregate: Aggregate
    rows: dict[str, dict[int, list[Row]]] = field(default_factory=dict)

    @property
    def form(self) -> str:
        """Form of the reasoning traces (`dataset.cot_type`) with spaces instead of underscores."""
        return str(self.aggregate.config.get("dataset", {}).get("cot_type", "")).replace("_", " ")

    @property
    def family(self) -> tuple[str, str, str, str]:
        """Model, training data, form of the traces and method; groups of one family differ only in ablations."""
        return self.aggregate.model, self.aggregate.train_dataset, self.form, self.aggregate.method

    def marks(self, dataset: str) -> dict[int, dict[str, bool]]:
        """Return seed -> question id -> whether the answer was right."""
        return {seed: {row.id: row.correct for row in rows} for seed, rows in self.rows.get(dataset, {}).items()}

    def chance(self, dataset: str) -> float | None:
        """Return the accuracy of always giving the most common gold answer; None if there are no per-question results."""
        rows = next(iter(self.rows.get(dataset, {}).values()), [])
        return max(Counter(row.gold for row in rows).values()) / len(rows) if rows else None


def group_of(path: str, runs: Sequence[SeedResults], model_name: str | None = None) -> tuple[Group, list[str]]:
    """Combine the seeds of one configuration; also return the problems found in the per-question files.

    Raises:
        UserError: the runs do not belong together; see `combine`.
    """
    aggregate, rows, problems = combine(runs, model_name), {}, []
    for dataset in aggregate.datasets:
        try:
            rows[dataset] = {run.seed: verified_rows(run.path(dataset), run.results[dataset]) for run in runs}
        except UserError as error:
            problems.append(f"{error} (its accuracy is shown; what needs the questions is not)")
    return Group(path, aggregate, rows), problems


def variants(groups: Sequence[Group]) -> list[tuple[Group, dict[str, Any]]]:
    """Return each group with the settings that differ from the baseline of its family (none for the baseline itself).

    The baseline is the configuration with the fewest differences to all others, because an ablation changes one setting at a time.
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
