"""All seeds of one configuration, with their questions: what every table and figure is made of."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kava.config.differences import differences
from kava.errors import UserError
from kava.report.aggregate import SeedResults, combine
from kava.report.aggregate_file import Aggregate
from kava.results import Row, own_rows, result_path

# Settings that change what is logged or how fast it runs, but not what is learnt.
_BOOKKEEPING = ("training.logging_steps", "training.eval_steps", "training.save_", "training.num_workers", "evaluation.", "system.")


@dataclass(frozen=True)
class Group:
    """All seeds of one configuration.

    Attributes:
        path: where they lie, below the outputs directory and without the seed, or the aggregate's name.
        aggregate: means over the seeds, for the data sets that every seed has.
        rows: data set -> seed -> its questions; empty where there is no per-question file.
    """

    path: str
    aggregate: Aggregate
    rows: dict[str, dict[int, list[Row]]] = field(default_factory=dict)

    @property
    def form(self) -> str:
        """Form of the traces, in words."""
        return str(self.aggregate.config.get("dataset", {}).get("cot_type", "")).replace("_", " ")

    @property
    def family(self) -> tuple[str, str, str, str]:
        """Groups of one family differ in ablations only: model, training data, form of the traces, method."""
        return self.aggregate.model, self.aggregate.train_dataset, self.form, self.aggregate.method

    def marks(self, dataset: str) -> dict[int, dict[str, bool]]:
        """Seed -> question id -> whether its answer was right."""
        return {seed: {row.id: row.correct for row in rows} for seed, rows in self.rows.get(dataset, {}).items()}

    def chance(self, dataset: str) -> float | None:
        """Accuracy of whoever always gives the commonest gold answer; None where the questions are not there."""
        rows = next(iter(self.rows.get(dataset, {}).values()), [])
        return max(Counter(row.gold for row in rows).values()) / len(rows) if rows else None


def group_of(path: str, runs: Sequence[SeedResults], model_name: str | None = None) -> tuple[Group, list[str]]:
    """Seeds that belong together with their questions, and what is wrong with the per-question files.

    Raises:
        UserError: they do not belong together.
    """
    aggregate, rows, problems = combine(runs, model_name), {}, []
    for dataset in aggregate.datasets:
        try:
            rows[dataset] = {run.seed: own_rows(result_path(run.directory, dataset), run.results[dataset]) for run in runs}
        except UserError as error:
            problems.append(f"{error} (its accuracy is shown; what needs the questions is not)")
    return Group(path, aggregate, rows), problems


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
