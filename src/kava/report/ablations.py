"""Ablations for the HTML report: runs that differ from a baseline, as a bar chart and as a table with paired differences.

for family in families(ranked(variants(found.groups), reference)): ablation_table(family, "ablations1", reference)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kava.report.group import Group
from kava.report.paired import DIFFERENCE, difference_cells, paired
from kava.report.reference import Reference
from kava.report.table import NOTHING, Cell, Table, measured
from kava.report.tables import accuracy_cell, changes, interval_of, label_of

Variants = Sequence[tuple[Group, dict[str, Any]]]


@dataclass(frozen=True)
class Family:
    """Runs of one folder with the same model, data and method, on the test set that most of them were evaluated on.

    Attributes:
        folder: folder of the runs; empty for the outputs directory itself.
        members: each run with the settings that differ from the baseline. The baseline comes first, if it has the test set.
        dataset: the test set.
    """

    folder: str
    members: Variants
    dataset: str

    def named(self, reference: Reference) -> list[tuple[Group, str]]:
        """Return each run with its label: the changed settings, or the name of the method for the baseline."""
        return [(group, changes(changed) or label_of(group, {}, reference)) for group, changed in self.members]

    def title(self, reference: Reference) -> str:
        """Return a title such as `KaVa on GSM8k`."""
        return f"{reference.method_label(self.members[0][0].aggregate.method)} on {reference.dataset_label(self.dataset)}"


def ranked(found: Variants, reference: Reference) -> Variants:
    """Sort runs as in the paper's tables: by model and data, then by method in the order of the reference, then by the changed settings."""
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
    """Return the ablations of every folder; a folder without its own baseline uses the first one of the same family."""
    gathered = []
    for family, folder in dict.fromkeys((group.family, _folder(group)) for group, changed in found if changed):
        same = [(group, changed) for group, changed in found if group.family == family]
        own = [(group, changed) for group, changed in same if changed and _folder(group) == folder]
        centres = sorted((item for item in same if not item[1]), key=lambda item: _folder(item[0]) != folder)
        members = [*centres[:1], *own]
        # The baseline, to which the others are compared, has to be in the table.
        known = centres[0][0].aggregate.datasets if centres else None
        counts = Counter(name for group, _ in members for name in group.aggregate.datasets if known is None or name in known)
        dataset = max(counts, key=lambda name: counts[name])
        gathered.append(Family(folder, [item for item in members if dataset in item[0].aggregate.datasets], dataset))
    return gathered


def bars(family: Family, reference: Reference) -> list[tuple[str, float, tuple[float, float]]]:
    """Return the label, the accuracy and its interval of each run, in percent."""
    measured = [(label, group.aggregate.datasets[family.dataset]) for group, label in family.named(reference)]
    return [(label, 100 * data.accuracy_mean, interval_of(data)) for label, data in measured]


def ablation_table(family: Family, name: str, reference: Reference) -> Table:
    """Return a table with a row per run: accuracy, and the paired difference to the first run on the same questions."""
    centre = family.members[0][0]
    rows = []
    for index, (group, label) in enumerate(family.named(reference)):
        data = group.aggregate.datasets[family.dataset]
        rows.append(
            [
                Cell(label),
                accuracy_cell(data),
                *(difference_cells(paired(group, centre, family.dataset)) if index else [Cell(NOTHING)] * 2),
                measured(data.forward_passes_mean, data.forward_passes_std),
                Cell(group.path.rpartition("/")[2] if _folder(group) == family.folder else group.path),
            ]
        )
    caption = (
        f"{family.title(reference)}: mean (standard deviation over seeds) and 95 % interval; differences to the first row on the same"
        f" questions, {DIFFERENCE}{f'. Runs in {family.folder}' if family.folder else ''}"
    )
    columns = ["Changed setting", "Accuracy, %", "Difference, points", "p", "Forward passes", "Run"]
    return Table(name, "", caption, columns, rows)


def _folder(group: Group) -> str:
    return group.path.rpartition("/")[0]
