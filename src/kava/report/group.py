"""All seeds of one configuration with their per-question results: the input of every table and figure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kava.config.differences import differences
from kava.config.fingerprint import MAY_CHANGE_ON_RESUME, with_settled_dtype
from kava.errors import UserError
from kava.methods import METHODS
from kava.report.aggregate import SeedResults, combine
from kava.report.aggregate_file import Aggregate
from kava.results import Row, Verified

# Settings that change logging, evaluation or speed, but not what the model learns.
_BOOKKEEPING = (
    *MAY_CHANGE_ON_RESUME, "training.logging_steps", "training.eval_steps", "training.save_", "system.",
    "evaluation.datasets", "evaluation.max_samples", "evaluation.validation_samples", "evaluation.tolerance",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """All seeds of one configuration.

    Attributes:
        path: location below the outputs directory, without the seed, or the name of the aggregate.
        aggregate: means over the seeds, for the data sets that every seed has.
        rows: data set -> seed -> per-question results; a data set with a missing per-question file is absent.
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

    @property
    def replaces_latents(self) -> bool:
        """Whether a method with latents wrote its chain of thought instead: `evaluation.use_latent: false`."""
        method = METHODS.get(self.aggregate.method)
        return method is not None and method.uses_latents and self.aggregate.config.get("evaluation", {}).get("use_latent") is False

    @property
    def writes_trace(self) -> bool:
        """Whether the answers begin with a written chain of thought: by the method, or in place of its latents."""
        method = METHODS.get(self.aggregate.method)
        return self.replaces_latents or (method is not None and method.writes_cot)

    def marks(self, dataset: str) -> dict[int, dict[str, bool]]:
        """Return seed -> question id -> whether the answer was right."""
        return {seed: {row.id: row.correct for row in rows} for seed, rows in self.rows.get(dataset, {}).items()}

    def same_questions(self, other: "Group", dataset: str) -> bool:
        """Return whether both were measured on the same content of a data set; question ids count from 0 in any file."""
        mine, theirs = self.aggregate.datasets.get(dataset), other.aggregate.datasets.get(dataset)
        return mine is not None and theirs is not None and mine.data.fingerprint == theirs.data.fingerprint

    def chance(self, dataset: str) -> float | None:
        """Return the accuracy of always giving the most common gold answer; None if there are no per-question results."""
        rows = next(iter(self.rows.get(dataset, {}).values()), [])
        return max(Counter(row.gold for row in rows).values()) / len(rows) if rows else None


def group_of(path: str, seeds: Mapping[str, Mapping[str, Verified]], model_name: str | None = None) -> tuple[Group, list[str]]:
    """Combine the seeds of one configuration; also return which per-question files are missing.

    Args:
        path: name of the group in tables.
        seeds: directory of each seed -> data set -> its result; every seed has the same data sets.
        model_name: as in `combine`.

    Raises:
        UserError: the runs do not belong together; see `combine`.
    """
    runs = [SeedResults(directory, {name: found.result for name, found in own.items()}) for directory, own in seeds.items()]
    aggregate, rows, problems = combine(runs, model_name), {}, []
    for dataset in aggregate.datasets:
        try:
            rows[dataset] = {own[dataset].result.run.seed: own[dataset].needed_rows() for own in seeds.values()}
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
        # Of two equally close ones, the one that answers as its method does: not `kava evaluate --no_latent` of the same run.
        centres[name] = min(family, key=lambda group: (sum(len(_departures(group, other)) for other in family), group.writes_trace))
    return [(group, _departures(centres[group.family], group)) for group in groups]


def _departures(centre: Group, group: Group) -> dict[str, Any]:
    found = differences([with_settled_dtype(one.aggregate.config) for one in (centre, group)])
    return {key: values[1] for key, values in found.items() if not key.startswith(_BOOKKEEPING)}
