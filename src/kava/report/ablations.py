"""Ablations for the HTML report: families of runs that depart from one centre, as bars and as a table with paired differences.

for family in families(ranked(variants(found.groups), reference)): ablation_table(family, "ablations1", reference)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kava.report.html_tables import NOTHING, Cell, Table, changes, interval_of
from kava.report.reference import Reference
from kava.report.rows import number
from kava.report.runs import Group
from kava.statistics import paired_bootstrap

Variants = Sequence[tuple[Group, dict[str, Any]]]


@dataclass(frozen=True)
class Family:
    """Runs of one folder that share model, data and method, the centre first, on the test set that most of them have.

    Attributes:
        folder: where they lie; empty for the outputs directory itself.
        members: each with the settings in which it departs from the centre.
        dataset: the test set.
    """

    folder: str
    members: Variants
    dataset: str

    def named(self, reference: Reference) -> list[tuple[Group, str]]:
        """Each run with what it changes; the centre by its method's name."""
        return [(group, changes(changed) or reference.method_label(group.aggregate.method)) for group, changed in self.members]

    def title(self, reference: Reference) -> str:
        """`KaVa on GSM8k`."""
        return f"{reference.method_label(self.members[0][0].aggregate.method)} on {reference.dataset_label(self.dataset)}"


def ranked(found: Variants, reference: Reference) -> Variants:
    """In the order of the paper's tables: by model and data, methods as the reference lists them, ablations by what they change."""
    methods = list(reference.labels.methods)

    def rank(item: tuple[Group, dict[str, Any]]) -> tuple[Any, ...]:
        group, changed = item
        *data, method = group.family
        place = methods.index(method) if method in methods else len(methods)
        keys = [(key, isinstance(value, str), str(value) if isinstance(value, str) else float(value or 0)) for key, value in changed.items()
                if not isinstance(value, (list, dict))]  # fmt: skip
        return data, place, len(changed) > 0, keys, group.path

    return sorted(found, key=rank)


def families(found: Variants) -> list[Family]:
    """Every folder's ablations; a folder without a centre of its own borrows the first one of the same family."""
    gathered = []
    for family, folder in dict.fromkeys((group.family, _folder(group)) for group, changed in found if changed):
        same = [(group, changed) for group, changed in found if group.family == family]
        own = [(group, changed) for group, changed in same if changed and _folder(group) == folder]
        centres = sorted((item for item in same if not item[1]), key=lambda item: _folder(item[0]) != folder)
        members = [*centres[:1], *own]
        counts = Counter(name for group, _ in members for name in group.aggregate.datasets)
        dataset = max(counts, key=lambda name: counts[name])
        gathered.append(Family(folder, [item for item in members if dataset in item[0].aggregate.datasets], dataset))
    return gathered


def bars(family: Family, reference: Reference) -> list[tuple[str, float, tuple[float, float]]]:
    """Label, accuracy in percent and its interval, per run."""
    measured = [(label, group.aggregate.datasets[family.dataset]) for group, label in family.named(reference)]
    return [(label, 100 * data.accuracy_mean, interval_of(data)) for label, data in measured]


def ablation_table(family: Family, name: str, reference: Reference) -> Table:
    """A row per run: accuracy, and its difference to the centre on the same questions."""
    centre = _marks(family.members[0][0], family.dataset)
    rows = []
    for index, (group, label) in enumerate(family.named(reference)):
        data = group.aggregate.datasets[family.dataset]
        low, high = interval_of(data)
        std = None if data.accuracy_std is None else 100 * data.accuracy_std
        rows.append(
            [
                Cell(label),
                Cell(number(100 * data.accuracy_mean, std), 100 * data.accuracy_mean, f"[{low:.1f}, {high:.1f}]"),
                *(_difference(_marks(group, family.dataset), centre) if index else [Cell(NOTHING)] * 2),
                Cell(number(data.forward_passes_mean, data.forward_passes_std), data.forward_passes_mean),
                Cell(group.path.rpartition("/")[2] if _folder(group) == family.folder else group.path),
            ]
        )
    caption = (
        f"{family.title(reference)}: mean (sample deviation over seeds) and 95 % interval; differences to the first row on the same"
        f" questions (bootstrap over questions, means over seeds){f'. Runs in {family.folder}' if family.folder else ''}"
    )
    columns = ["Changed setting", "Accuracy, %", "Difference, points", "p", "Forward passes", "Run"]
    return Table(name, caption, columns, rows, [True] * len(rows))


def _difference(own: dict[str, float], centre: dict[str, float]) -> list[Cell]:
    """Difference with its interval, and p; nothing where the questions are unknown or others."""
    if not own or own.keys() != centre.keys():
        return [Cell(NOTHING)] * 2
    test = paired_bootstrap([own[key] for key in centre], list(centre.values()))
    low, high = (100 * bound for bound in test.ci95)
    return [
        Cell(f"{100 * test.difference:+.1f}", 100 * test.difference, f"[{low:+.1f}, {high:+.1f}]"),
        Cell(f"{test.p_value:.2g}", test.p_value),
    ]


def _marks(group: Group, dataset: str) -> dict[str, float]:
    """Question id -> share of the seeds that answered it right."""
    right, asked = Counter[str](), Counter[str]()
    for row in group.rows.get(dataset, []):
        right[row.id] += row.correct
        asked[row.id] += 1
    return {key: right[key] / asked[key] for key in asked}


def _folder(group: Group) -> str:
    return group.path.rpartition("/")[0]
