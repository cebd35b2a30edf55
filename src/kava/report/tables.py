"""Tables of the results: accuracy (Table 1), cost per question (Table 2), accuracy by number of steps, and all numbers (CSV).

    labelled = [(group, label_of(group, departures, reference)) for group, departures in variants(groups)]
    accuracy_table(labelled, reference, relevant(labelled, reference))

All commands use these functions, so that a table has the same columns everywhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kava.report.aggregate import DEFAULT_DATASETS
from kava.report.aggregate_file import Aggregate, DatasetSummary
from kava.report.group import Group
from kava.report.reference import Reference, ReferenceRow
from kava.report.steps import StepRow
from kava.report.table import NOTHING, PARTIAL, SOURCE, UNCONFIRMED, Cell, Table, measured, percent, share, shown, signed, without_constants

Labelled = Sequence[tuple[Group, str]]
OF_RUN = MODEL, DATA = "Model", "Training data"
_NO_SECOND_SOURCE = f"{UNCONFIRMED} no second source gives this figure."
_SPREAD = "mean (standard deviation over seeds)"
INTERVAL = "95 % interval (over seeds; over questions where there is one seed)"


def label_of(group: Group, departures: Mapping[str, Any], reference: Reference) -> str:
    """Return a label such as `KaVa`, or `KaVa, num_iterations = 6` for an ablation."""
    # Said of a baseline too: it does not answer as its method does.
    written = {"evaluation.use_latent": False} if group.replaces_latents else {}
    return ", ".join(filter(None, [reference.method_label(group.aggregate.method), changes({**written, **departures})]))


def told_apart(labelled: Labelled) -> Labelled:
    """Make labels unique within a model, training data and form of the traces.

    Of several runs with one label, the one with the most test sets keeps it. The others also show the part of their folder that is their
    own, or else all of it, or else the fingerprint too: such runs differ in settings of evaluation or speed alone.
    """
    unique = []
    for group, label in labelled:
        same = [other for other, own in labelled if own == label and other.family[:3] == group.family[:3]]
        first = max(same, key=lambda other: len(other.aggregate.datasets))
        places = zip(*(_places(other, first) for other in same if other is not first), strict=True)
        way = next((number for number, found in enumerate(places) if len(set(found)) == len(found)), -1)
        unique.append((group, label if group is first else f"{label} ({_places(group, first)[way]})"))
    return unique


def _places(group: Group, other: Group) -> tuple[str, str, str]:
    own = "/".join(part for part in group.path.split("/") if part not in other.path.split("/"))
    return own or group.path, group.path, f"{group.path}, {group.aggregate.config_fingerprint}"


def changes(departures: Mapping[str, Any]) -> str:
    """Return text such as `num_iterations = 6`; a key whose last part is one word is shown in full: `lora.r = 16`."""
    names = {key: last if "_" in (last := key.rpartition(".")[2]) else key for key in departures}
    return ", ".join(f"{names[key]} = {shown(_whole(value))}" for key, value in departures.items())


def test_sets(labelled: Labelled) -> list[str]:
    """Return the test sets with results: first the guide's three, then the others in the order of the configurations."""
    measured = dict.fromkeys(name for group, _ in labelled for name in group.aggregate.datasets)
    listed = dict.fromkeys(name for group, _ in labelled for name in group.aggregate.config.get("evaluation", {}).get("datasets") or {})
    return [name for name in dict.fromkeys([*DEFAULT_DATASETS, *listed, *measured]) if name in measured]


def relevant(labelled: Labelled, reference: Reference) -> list[ReferenceRow]:
    """Return the reference rows whose model and training set we ran too."""
    ours = {(reference.model_label(g.aggregate.model), reference.dataset_label(g.aggregate.train_dataset)) for g, _ in labelled}
    return [row for row in reference.rows if (reference.model_label(row.model), reference.dataset_label(row.train_dataset)) in ours]


def accuracy_table(labelled: Labelled, reference: Reference, published: Sequence[ReferenceRow] = (), title: str = "") -> Table:
    """Return Table 1: accuracy per test set with intervals; for each model and training set, our rows come before the published ones."""
    lines = _by_settings([row for row in published if row.accuracy is not None])
    names = test_sets(labelled)
    names = list(dict.fromkeys([*DEFAULT_DATASETS, *names] if lines else names))
    names = [name for name in names if name in test_sets(labelled) or any(row.dataset == name for line in lines for row in line)]
    rows = [
        [_method(group, label, labelled), *(_accuracy(group, name) for name in names), *_whose(group, reference), _source(group)]
        for group, label in labelled
    ]
    for line in lines:
        by_name = {row.dataset: row for row in line}
        cells = [_published(row.accuracy, row.accuracy_std, row) if (row := by_name.get(name)) else Cell(NOTHING) for name in names]
        method, *whose = _theirs(line[0], reference)
        rows.append([method, *cells, *whose, Cell(line[0].where)])
    columns = ["Method", *map(reference.dataset_label, names), MODEL, DATA, SOURCE]
    caption = f"Test accuracy in percent: {_SPREAD} and {INTERVAL}; answers are compared exactly"
    notes = [*_partial_notes(labelled), *_data_notes(labelled, reference)]
    return _grouped(Table("accuracy", title, caption, columns, rows, _after(len(labelled), rows), notes))


def result_tables(
    labelled: Labelled, reference: Reference, published: Sequence[ReferenceRow] = (), title: str = "", datasets: Sequence[str] = ()
) -> list[Table]:
    """Return Tables 1 and 2; columns that are the same in every row move into the caption."""
    accuracy = accuracy_table(labelled, reference, published, title)
    efficiency = efficiency_table(labelled, reference, published, title and f"{title}: cost", datasets)
    return [without_constants(accuracy, (*OF_RUN, SOURCE)), without_constants(efficiency, ("Test set", *OF_RUN, SOURCE))]


def published_table(reference: Reference) -> Table:
    """Return all published accuracies, for a page without runs of a published model and training set."""
    caption = "Published test accuracy in percent, of other models on other data"
    return replace(accuracy_table([], reference, reference.rows), name="published", caption=caption)


def efficiency_table(
    labelled: Labelled, reference: Reference, published: Sequence[ReferenceRow] = (), title: str = "", datasets: Sequence[str] = ()
) -> Table:
    """Return Table 2: forward passes, tokens, milliseconds and cache per question, a row per run and test set (default: all)."""
    rows = []
    for group, label in labelled:
        for name in datasets or test_sets([(group, label)]):
            if (data := group.aggregate.datasets.get(name)) is not None:
                test_set = Cell(reference.dataset_label(name))
                rows.append([_method(group, label, labelled), test_set, *_costs(data), *_whose(group, reference), _source(group)])
    ours = len(rows)
    for row in published:
        if row.forward_passes is not None:
            passes = _published(row.forward_passes, row.forward_passes_std, row)
            method, *whose = _theirs(row, reference)
            rows.append([method, Cell(reference.dataset_label(row.dataset)), passes, *[Cell(NOTHING)] * 3, *whose, Cell(row.where)])
    columns = ["Method", "Test set", "Forward passes", "Tokens", "Milliseconds", "Cache, KiB", MODEL, DATA, SOURCE]
    table = Table("efficiency", title, f"Cost per question: {_SPREAD}", columns, rows, _after(ours, rows), _partial_notes(labelled))
    return _grouped(table)


def steps_table(series: Mapping[tuple[str, str], Mapping[str, Sequence[StepRow]]], reference: Reference, title: str = "") -> Table:
    """Return accuracy and mean confidence by number of steps; `series` is (data set, scope of the runs) -> label -> rows."""
    rows = [
        [
            Cell(label),
            Cell(reference.dataset_label(dataset)),
            Cell(scope),
            Cell(str(row.steps), row.steps),
            Cell(str(row.questions), row.questions),
            share(row.accuracy, interval_text(row.interval), row.std),
            share(row.confidence),
            Cell(NOTHING) if row.confidence is None else signed(100 * (row.confidence - row.accuracy)),
        ]
        for (dataset, scope), by_label in series.items()
        for label, own in by_label.items()
        for row in own
    ]
    columns = ["Method", "Test set", "Runs", "Steps", "Questions", "Accuracy, %", "Confidence, %", "Confidence - accuracy"]
    caption = f"Accuracy and confidence by number of steps: {_SPREAD} and {INTERVAL}"
    return without_constants(Table("steps", title, caption, columns, rows), ("Test set", "Runs"))


NUMBERS = (
    "config", "model_name", "method", "model", "train_dataset", "dataset", "num_seeds", "seeds", "questions", "partial",
    "accuracy_mean", "accuracy_std", "accuracy_ci95_low", "accuracy_ci95_high",
    "forward_passes_mean", "forward_passes_std", "generated_tokens_mean", "generated_tokens_std",
    "seconds_per_question_mean", "seconds_per_question_std", "cache_bytes_per_question_mean", "config_fingerprint", "file",
)  # fmt: skip


def numbers_table(found: Iterable[tuple[str, str, Aggregate]]) -> Table:
    """Return every number for a spreadsheet, a row per (file, configuration name, aggregate) and data set.

    Numbers are unrounded, and accuracies are fractions, not percent.
    """
    rows = []
    for file, name, aggregate in found:
        for dataset, summary in aggregate.datasets.items():
            low, high = summary.accuracy_ci95 or (None, None)
            values = {
                **aggregate.model_dump(include={"model_name", "method", "model", "train_dataset", "num_seeds", "config_fingerprint"}),
                **summary.model_dump(exclude={"data", "per_seed", "accuracy_ci95", "n"}),
                "config": name,
                "seeds": " ".join(map(str, aggregate.seeds)),
                "dataset": dataset,
                "partial": aggregate.partial(dataset),
                "accuracy_ci95_low": low,
                "accuracy_ci95_high": high,
                "file": file,
            }
            rows.append([_unrounded(values[column]) for column in NUMBERS])
    return Table("numbers", "", "", list(NUMBERS), rows)


def interval_of(summary: DatasetSummary) -> tuple[float, float]:
    """Return the 95 % interval of the accuracy in percent: Student's t over seeds, Wilson's over questions for one seed."""
    low, high = summary.accuracy_ci95 or summary.per_seed[0].accuracy_ci95
    return 100 * low, 100 * high


def interval_text(bounds: Sequence[float]) -> str:
    """Format an interval of fractions in percent, such as `[55.5, 57.5]`."""
    return "[" + ", ".join(f"{100 * bound:.1f}" for bound in bounds) + "]" if bounds else ""


def accuracy_cell(summary: DatasetSummary, mark: str = "") -> Cell:
    """Return a cell such as `56.5 (0.4)` with its interval."""
    low, high = interval_of(summary)
    return measured(100 * summary.accuracy_mean, percent(summary.accuracy_std), mark, f"[{low:.1f}, {high:.1f}]")


def _accuracy(group: Group, dataset: str) -> Cell:
    summary = group.aggregate.datasets.get(dataset)
    return Cell(NOTHING) if summary is None else accuracy_cell(summary, PARTIAL if group.aggregate.partial(dataset) else "")


def _costs(data: DatasetSummary) -> list[Cell]:
    cache = data.cache_bytes_per_question_mean
    milliseconds = None if data.seconds_per_question_std is None else 1000 * data.seconds_per_question_std
    return [
        measured(data.forward_passes_mean, data.forward_passes_std),
        measured(data.generated_tokens_mean, data.generated_tokens_std),
        measured(1000 * data.seconds_per_question_mean, milliseconds),
        measured(None if cache is None else cache / 1024),
    ]


def _method(group: Group, label: str, labelled: Labelled) -> Cell:
    """Return the cell of a label, with the form of the traces if the table holds several forms.

    The form is in this cell because a phone shows only the first columns.
    """
    forms = {other.form for other, _ in labelled}
    return Cell(label, remark=group.form if len(forms) > 1 else "")


def _whose(group: Group, reference: Reference) -> list[Cell]:
    data = reference.dataset_label(group.aggregate.train_dataset)
    return [Cell(reference.model_label(group.aggregate.model)), Cell(data, remark=group.form)]


def _source(group: Group) -> Cell:
    seeds = group.aggregate.seeds
    return Cell(f"ours: {group.path}, {f'seed {seeds[0]}' if len(seeds) == 1 else f'{len(seeds)} seeds'}")


def _theirs(row: ReferenceRow, reference: Reference) -> list[Cell]:
    whose = [Cell(reference.model_label(row.model)), Cell(reference.dataset_label(row.train_dataset))]
    return [Cell(reference.method_label(row.method), remark=changes(row.settings)), *whose]


def _published(mean: float | None, std: float | None, row: ReferenceRow) -> Cell:
    return measured(mean, std, UNCONFIRMED if row.unconfirmed else "")


def _by_settings(rows: Sequence[ReferenceRow]) -> list[list[ReferenceRow]]:
    """Group rows that differ only in the test set, for one line each."""
    lines: dict[tuple[str, ...], list[ReferenceRow]] = {}
    for row in rows:
        lines.setdefault((row.model, row.train_dataset, row.method, str(row.settings), row.where), []).append(row)
    return list(lines.values())


def _partial_notes(labelled: Labelled) -> list[str]:
    reasons = dict.fromkeys(why for group, _ in labelled for name in group.aggregate.datasets if (why := group.aggregate.partial(name)))
    return [f"{PARTIAL} not a full evaluation: {'; '.join(reasons)}."] if reasons else []


def _data_notes(labelled: Labelled, reference: Reference) -> list[str]:
    """Return notes on training data whose content differs between rows of a table under the same name."""
    contents: dict[str, set[str]] = {}
    for group, _ in labelled:
        if group.aggregate.trained_on is not None:
            contents.setdefault(group.aggregate.train_dataset, set()).add(group.aggregate.trained_on)
    return [
        f"Not all rows were trained on the same content of {reference.dataset_label(name)} ({', '.join(sorted(found))})."
        for name, found in contents.items()
        if len(found) > 1
    ]


def _grouped(table: Table) -> Table:
    """Group the rows by model and training data, in order of appearance, and add the note on unconfirmed numbers."""
    places = [table.columns.index(name) for name in (MODEL, DATA)]
    keys = [tuple(row[place].text for place in places) for row in table.rows]
    order = sorted(range(len(table.rows)), key=lambda index: (list(dict.fromkeys(keys)).index(keys[index]), index))
    published = frozenset(new for new, old in enumerate(order) if old in table.published)
    notes = [*table.notes, *([_NO_SECOND_SOURCE] if any(UNCONFIRMED in cell.text for row in table.rows for cell in row) else [])]
    return replace(table, rows=[table.rows[index] for index in order], published=published, notes=notes)


def _after(ours: int, rows: Sequence[object]) -> frozenset[int]:
    return frozenset(range(ours, len(rows)))


def _unrounded(value: Any) -> Cell:
    if value is None:
        return Cell(NOTHING)
    return Cell(str(value), None if isinstance(value, str) else value)


def _whole(value: Any) -> Any:
    """Return 2 for 2.0, as the user wrote it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
