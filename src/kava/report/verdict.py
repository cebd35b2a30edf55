"""Summary of the results in sentences: the best method on each test set, its difference to full CoT, and its cost.

for verdict in verdicts(labelled, reference): print(verdict.headline)
"""

from collections import Counter
from dataclasses import dataclass

from kava.report.aggregate_file import DatasetSummary
from kava.report.grouping import by_scope
from kava.report.reference import Reference
from kava.report.tables import Labelled, interval_of, test_sets


@dataclass(frozen=True)
class Verdict:
    """Summary of the runs with one model, training data and form of the traces.

    Attributes:
        scope: name of the scope; empty if the page has only one.
        headline: the method that is best on most test sets, with its numbers on the first of these.
        sentences: (test set, sentence) pairs.
    """

    scope: str
    headline: str
    sentences: list[tuple[str, str]]


@dataclass(frozen=True)
class _Judged:
    """The best method on a test set, and the method that it is compared with (`rival`).

    Methods that write no chain of thought are preferred. The best of them is compared with the best method that writes one, such as full
    CoT (`beside_written`), or else with the next best method, if there is one.
    """

    best: str
    data: DatasetSummary
    rival: str | None
    rival_data: DatasetSummary | None
    chance: float | None
    partial: str
    beside_written: bool

    @property
    def distance(self) -> str:
        """Such as `0.2 points below Full CoT (99.5 %): the 95 % intervals overlap; 9.0 forward passes a question instead of 23.5`."""
        passes = f"{self.data.forward_passes_mean:.1f} forward passes a question"
        if self.rival_data is None:
            return f"with no other method to compare with; {passes}"
        points = round(100 * (self.data.accuracy_mean - self.rival_data.accuracy_mean), 1)
        (low, high), (other_low, other_high) = interval_of(self.data), interval_of(self.rival_data)
        gap = "level with" if points == 0 else f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"
        apart = "do not overlap" if high < other_low or other_high < low else "overlap"
        rival = f"{self.rival} ({100 * self.rival_data.accuracy_mean:.1f} %)"
        return f"{gap} {rival}: the 95 % intervals {apart}; {passes} instead of {self.rival_data.forward_passes_mean:.1f}"

    @property
    def sentence(self) -> str:
        low, high = interval_of(self.data)
        said = f"{self.best} {100 * self.data.accuracy_mean:.1f} % [{low:.1f}, {high:.1f}], {self.distance}."
        if self.chance is not None:
            clear = "" if low > 100 * self.chance else ", not clearly above it"
            said += f" Chance level {100 * self.chance:.1f} %{clear}."
        return f"{said} Not a full evaluation: {self.partial}." if self.partial else said


def verdicts(methods: Labelled, reference: Reference) -> list[Verdict]:
    """Return one verdict per scope; the runs are methods, not ablations."""
    found = []
    for scope, own in by_scope(methods, reference):
        judged = {dataset: _judged(own, dataset) for dataset in test_sets(own)}
        sentences = [(reference.dataset_label(dataset), item.sentence) for dataset, item in judged.items()]
        found.append(Verdict(scope, _headline(judged, reference), sentences))
    return found


def _headline(judged: dict[str, _Judged], reference: Reference) -> str:
    wins = Counter(item.best for item in judged.values())
    # In a tie max returns the first method, and the most important test set comes first.
    winner = max(wins, key=lambda label: wins[label])
    dataset, shown = next((dataset, item) for dataset, item in judged.items() if item.best == winner)
    count = (
        "both"
        if len(judged) == 2 == wins[winner]
        else f"all {len(judged)}"
        if wins[winner] == len(judged)
        else f"{wins[winner]} of {len(judged)}"
    )
    where = "" if len(judged) == 1 else f" on {count} test sets"
    among = " without a written chain" if shown.beside_written else ""
    first = f"{100 * shown.data.accuracy_mean:.1f} % on {reference.dataset_label(dataset)}, {shown.distance}"
    return f"{winner} is best{among}{where}: {first}." if shown.rival else f"{winner}: {first}."


def _judged(labelled: Labelled, dataset: str) -> _Judged:
    measured = [(label, group, data) for group, label in labelled if (data := group.aggregate.datasets.get(dataset)) is not None]
    measured.sort(key=lambda item: (-item[2].accuracy_mean, item[2].forward_passes_mean))
    written = [item for item in measured if item[1].writes_trace]
    others = [item for item in measured if not item[1].writes_trace]
    best, *rest = others or written
    rival = next(iter(written if others and written else rest), None)
    label, group, data = best
    rival_label, rival_data = (rival[0], rival[2]) if rival else (None, None)
    partial = group.aggregate.partial(dataset)
    if rival and not partial and (of_rival := rival[1].aggregate.partial(dataset)):
        partial = f"{rival_label}, {of_rival}"
    return _Judged(label, data, rival_label, rival_data, group.chance(dataset), partial, bool(others and written))
