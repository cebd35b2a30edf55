"""Tables of the report as plain rows: a text to read, a value to sort by, and a remark (an interval) below it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kava.experiment.aggregate_file import Aggregate, DatasetSummary
from kava.explain.record import Interventions
from kava.report.html_figures import StepRow
from kava.report.reference import Reference, ReferenceRow
from kava.report.rows import UNCONFIRMED, number
from kava.report.runs import Group
from kava.report.summary import shown

NOTHING = "--"


@dataclass(frozen=True)
class Cell:
    """One cell; `sort` None sorts by the text."""

    text: str
    sort: float | int | None = None
    remark: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its caption; `ours[i]` tells our rows from published ones."""

    name: str
    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    ours: list[bool]

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers, some of them perhaps unknown."""
        return [any(row[index].sort is not None for row in self.rows) for index in range(len(self.columns))]


Labelled = Sequence[tuple[Group, str]]


def label_of(group: Group, departures: Mapping[str, Any], reference: Reference) -> str:
    """`KaVa`, or for an ablation `KaVa, num_iterations = 6`."""
    return ", ".join(filter(None, [reference.method_label(group.aggregate.method), changes(departures)]))


def changes(departures: Mapping[str, Any]) -> str:
    """`num_iterations = 6`; of a key whose last part is one word, all of it: `lora.r = 16`."""
    names = {key: last if "_" in (last := key.rpartition(".")[2]) else key for key in departures}
    return ", ".join(f"{names[key]} = {shown(_whole(value))}" for key, value in departures.items())


def test_sets(labelled: Labelled) -> list[str]:
    """Those that were measured, as the configurations list them."""
    measured = dict.fromkeys(name for group, _ in labelled for name in group.aggregate.datasets)
    listed = dict.fromkeys(name for group, _ in labelled for name in group.aggregate.config.get("evaluation", {}).get("datasets") or {})
    return [*(name for name in listed if name in measured), *(name for name in measured if name not in listed)]


def without_constants(table: Table, names: Collection[str]) -> Table:
    """Columns of these names that say the same in every row go into the caption."""
    same = [i for i, name in enumerate(table.columns) if name in names and len({row[i].text for row in table.rows}) == 1]
    said = "".join(f" {table.columns[index]}: {text}." for index in same if (text := table.rows[0][index].text))
    kept = [index for index in range(len(table.columns)) if index not in same]
    return replace(
        table,
        caption=f"{table.caption}.{said}" if said else table.caption,
        columns=[table.columns[index] for index in kept],
        rows=[[row[index] for index in kept] for row in table.rows],
    )


def interval_of(summary: DatasetSummary) -> tuple[float, float]:
    """95 % interval of the accuracy in percent: Student's t over seeds, Wilson's over questions for one seed."""
    low, high = summary.accuracy_ci95 or summary.per_seed[0].accuracy_ci95
    return 100 * max(low, 0.0), 100 * min(high, 1.0)


def accuracy_table(labelled: Labelled, reference: Reference, published: bool = True) -> Table:
    """Table 1: accuracy per test set with intervals, the reference rows of the same model and training data beside ours."""
    return _accuracies("accuracy", _CAPTION, labelled, relevant(labelled, reference) if published else [], reference)


def published_table(reference: Reference) -> Table:
    """All published accuracies, for a page that has no run of theirs."""
    return _accuracies("published", "Published test accuracy of other models on other data", [], reference.rows, reference)


_CAPTION = "Test accuracy: mean (sample deviation over seeds) and 95 % interval (over seeds; over questions where there is one seed)"
_OF_RUN = ("Model", "Training data")


def _accuracies(table: str, caption: str, labelled: Labelled, published_rows: Sequence[ReferenceRow], reference: Reference) -> Table:
    names, forms = test_sets(labelled), _forms(labelled)
    references = _by_settings([row for row in published_rows if row.accuracy is not None])
    names += [name for name in dict.fromkeys(row.dataset for rows in references for row in rows) if name not in names]
    rows, ours = [], []
    for group, label in labelled:
        cells = [_accuracy(group.aggregate.datasets.get(name)) for name in names]
        rows.append([Cell(label, remark=forms.get(group.path, "")), *cells, *_whose(group.aggregate, reference), Cell(_seeds(group))])
        ours.append(True)
    for published in references:
        first, by_name = published[0], {row.dataset: row for row in published}
        cells = [_published(by_name[name].accuracy, by_name[name].accuracy_std, by_name[name]) if name in by_name else Cell(NOTHING)
                 for name in names]  # fmt: skip
        method, *whose = _theirs(first, reference)
        rows.append([method, *cells, *whose, Cell(first.where)])
        ours.append(False)
    columns = ["Method", *(f"{reference.dataset_label(name)}, %" for name in names), *_OF_RUN, "Source"]
    return without_constants(Table(table, caption, columns, rows, ours), _OF_RUN)


def efficiency_table(labelled: Labelled, reference: Reference, published: bool = True) -> Table:
    """Table 2: forward passes, tokens, seconds and cache per question and test set."""
    rows, ours = [], []
    forms = _forms(labelled)
    for group, label in labelled:
        for name in test_sets([(group, label)]):
            data = group.aggregate.datasets[name]
            cache = data.cache_bytes_per_question_mean
            rows.append(
                [
                    Cell(label, remark=forms.get(group.path, "")),
                    Cell(reference.dataset_label(name)),
                    _number(data.forward_passes_mean, data.forward_passes_std),
                    _number(data.generated_tokens_mean, data.generated_tokens_std),
                    _number(1000 * data.seconds_per_question_mean, _thousand(data.seconds_per_question_std)),
                    Cell(NOTHING) if cache is None else _number(cache / 1024, None),
                    *_whose(group.aggregate, reference),
                    Cell(_seeds(group)),
                ]
            )
            ours.append(True)
    for row in relevant(labelled, reference) if published else []:
        if row.forward_passes is not None:
            passes = _published(row.forward_passes, row.forward_passes_std, row)
            method, *whose = _theirs(row, reference)
            test_set = Cell(reference.dataset_label(row.dataset))
            rows.append([method, test_set, passes, *[Cell(NOTHING)] * 3, *whose, Cell(row.where)])
            ours.append(False)
    columns = ["Method", "Test set", "Forward passes", "Tokens", "Milliseconds", "Cache, KiB", *_OF_RUN, "Source"]
    table = Table("efficiency", "Cost per question: mean (sample deviation over seeds)", columns, rows, ours)
    return without_constants(table, ("Test set", *_OF_RUN))


def steps_table(series: Mapping[tuple[str, str], Mapping[str, Sequence[StepRow]]], reference: Reference) -> Table:
    """Accuracy and mean confidence by number of steps: (data set, which runs) -> label -> rows."""
    rows = [
        [
            Cell(label),
            Cell(reference.dataset_label(dataset)),
            Cell(scope),
            Cell(str(row.steps), row.steps),
            Cell(str(row.questions), row.questions),
            Cell(f"{100 * row.accuracy:.1f}", row.accuracy, f"[{100 * row.interval[0]:.1f}, {100 * row.interval[1]:.1f}]"),
            Cell(NOTHING) if row.confidence is None else Cell(f"{100 * row.confidence:.1f}", row.confidence),
            Cell(NOTHING) if row.confidence is None else _signed(100 * (row.confidence - row.accuracy)),
        ]
        for (dataset, scope), by_label in series.items()
        for label, own in by_label.items()
        for row in own
    ]
    columns = ["Method", "Test set", "Runs", "Steps", "Answers", "Accuracy, %", "Confidence, %", "Confidence - accuracy"]
    caption = "Accuracy and confidence by number of steps, answers of all seeds together"
    return without_constants(Table("steps", caption, columns, rows, [True] * len(rows)), ("Test set", "Runs"))


def interventions_table(found: Interventions, name: str) -> Table:
    """Effects of every disturbance, with intervals."""
    rows = [
        [
            Cell("all", -1) if effect.latent is None else Cell(str(effect.latent), effect.latent),
            Cell(effect.kind),
            Cell(f"{100 * effect.changed:.1f}", effect.changed, _interval(effect.changed_ci95)),
            Cell(NOTHING) if effect.accuracy is None else Cell(f"{100 * effect.accuracy:.1f}", effect.accuracy),
            Cell(NOTHING)
            if effect.difference is None
            else Cell(f"{100 * effect.difference:+.1f}", effect.difference, _interval(effect.difference_ci95 or [])),
            Cell(NOTHING) if effect.took_donor is None else Cell(f"{100 * effect.took_donor:.1f}", effect.took_donor),
        ]
        for effect in found.effects
    ]
    columns = ["Latent", "Disturbance", "Changed answers, %", "Accuracy, %", "Difference, points", "Took the donor's answer, %"]
    caption = f"Disturbed latents on the same {found.questions} questions, with 95 % intervals"
    return Table(name, caption, columns, rows, [True] * len(rows))


def provenance_table(groups: Sequence[Group]) -> Table:
    """A row per seed: where its numbers come from."""
    rows = []
    for group in groups:
        for run in group.aggregate.runs:
            source = run.provenance
            packages = source.get("packages") or {}
            commit = f"{str(source.get('commit') or 'unknown')[:10]}{' (changed)' if source.get('dirty') else ''}"
            machine = ", ".join(source.get("gpus") or []) or str(source.get("cpu", NOTHING))
            versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "peft") if packages.get(name))
            cells = (group.path, commit, versions, machine, source.get("time_utc", NOTHING), group.aggregate.config_fingerprint)
            rows.append([Cell(cells[0]), Cell(str(run.seed), run.seed), *(Cell(str(cell)) for cell in cells[1:])])
    columns = ["Run", "Seed", "Commit", "Packages", "Machine", "Time (UTC)", "Configuration"]
    return Table("provenance", "Where the numbers come from", columns, rows, [True] * len(rows))


def relevant(labelled: Labelled, reference: Reference) -> list[ReferenceRow]:
    """Reference rows for a model and training set that we ran."""
    ours = {(reference.model_label(g.aggregate.model), reference.dataset_label(g.aggregate.train_dataset)) for g, _ in labelled}
    return [row for row in reference.rows if (reference.model_label(row.model), reference.dataset_label(row.train_dataset)) in ours]


def _by_settings(rows: Sequence[ReferenceRow]) -> list[list[ReferenceRow]]:
    """Rows that differ in the test set only belong on one line."""
    lines: dict[tuple[str, ...], list[ReferenceRow]] = {}
    for row in rows:
        lines.setdefault((row.model, row.train_dataset, row.method, str(row.settings), row.where), []).append(row)
    return list(lines.values())


def _forms(labelled: Labelled) -> dict[str, str]:
    """Path -> form of the traces, where a table holds several: beside the method, since a phone shows the first columns only."""
    forms = {group.path: group.family[2].replace("_", " ") for group, _ in labelled}
    return forms if len(set(forms.values())) > 1 else {}


def _whose(aggregate: Aggregate, reference: Reference) -> list[Cell]:
    data = reference.dataset_label(aggregate.train_dataset)
    form = str(aggregate.config.get("dataset", {}).get("cot_type", "")).replace("_", " ")
    return [Cell(reference.model_label(aggregate.model)), Cell(f"{data}, {form}" if form else data)]


def _theirs(row: ReferenceRow, reference: Reference) -> list[Cell]:
    method = ", ".join(filter(None, [reference.method_label(row.method), changes(row.settings)]))
    return [Cell(method), Cell(reference.model_label(row.model)), Cell(reference.dataset_label(row.train_dataset))]


def _accuracy(summary: DatasetSummary | None) -> Cell:
    if summary is None:
        return Cell(NOTHING)
    low, high = interval_of(summary)
    std = None if summary.accuracy_std is None else 100 * summary.accuracy_std
    return Cell(number(100 * summary.accuracy_mean, std), summary.accuracy_mean * 100, f"[{low:.1f}, {high:.1f}]")


def _published(mean: float | None, std: float | None, row: ReferenceRow) -> Cell:
    return Cell(number(mean, std) + (UNCONFIRMED if row.unconfirmed else ""), mean)


def _number(mean: float, std: float | None) -> Cell:
    return Cell(number(mean, std), mean)


def _thousand(value: float | None) -> float | None:
    return None if value is None else 1000 * value


def _signed(value: float) -> Cell:
    return Cell(f"{value:+.1f}", value)


def _interval(bounds: Sequence[float]) -> str:
    return "[" + ", ".join(f"{100 * bound:.1f}" for bound in bounds) + "]" if bounds else ""


def _whole(value: Any) -> Any:
    """2 for 2.0: what the user wrote."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _seeds(group: Group) -> str:
    seeds = group.aggregate.seeds
    return f"ours: {group.path}, {f'seed {seeds[0]}' if len(seeds) == 1 else f'{len(seeds)} seeds'}"
