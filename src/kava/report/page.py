"""Render `report.html` from what `kava.report.runs` found: one self-contained page that needs no other file and no network.

html = render_page(find_runs("outputs"), title="outputs")
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from kava import __version__
from kava.explain.figures import Drawing, drawings, question_drawings
from kava.explain.record import Explanation, QuestionView
from kava.report import ablations, tables
from kava.report import grouping as scopes
from kava.report import html_figures as compared
from kava.report.group import variants
from kava.report.html_tables import interventions_table, provenance_table
from kava.report.reference import Reference, load_reference
from kava.report.runs import Curve, Found
from kava.report.svg import inline_svg
from kava.report.table import Table
from kava.report.verdict import Verdict, verdicts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """SVG markup and caption of a figure on the page."""

    svg: str
    caption: str


@dataclass
class _Painter:
    """Draws figures with ids that are unique on the page."""

    count: int = 0

    def __call__(self, draw: Callable[[], "Figure"], title: str, description: str) -> Picture:
        self.count += 1
        return Picture(inline_svg(draw, f"f{self.count}", title, description), f"{title}. {description}")


@dataclass(frozen=True)
class _Question:
    """One explained question, ready for the template."""

    view: QuestionView
    pictures: list[Picture]
    notes: list[str]


@dataclass(frozen=True)
class _Explained:
    """One explained checkpoint."""

    path: str
    explanation: Explanation
    questions: list[_Question]
    pictures: list[Picture]
    effects: Table | None
    notes: list[str]


@dataclass
class _Content:
    title: str
    found: Found
    version: str = __version__
    verdicts: list[Verdict] = field(default_factory=list)
    accuracy: Table | None = None
    published: Table | None = None
    efficiency: Table | None = None
    passes: list[Picture] = field(default_factory=list)
    losses: list[tuple[str, Picture | None]] = field(default_factory=list)
    ablations: list[tuple[Picture, Table]] = field(default_factory=list)
    ablated: list[Table] = field(default_factory=list)
    steps: list[Picture] = field(default_factory=list)
    steps_table: Table | None = None
    explained: list[_Explained] = field(default_factory=list)
    provenance: Table | None = None
    settings: list[tuple[str, str]] = field(default_factory=list)


def render_page(found: Found, title: str) -> str:
    """Return the HTML of the whole page."""
    reference, paint = load_reference(), _Painter()
    content = _Content(title, found)
    if found.groups:
        _fill_results(content, found, reference, paint)
    content.losses = _losses(found.curves, paint)
    content.explained = [_explained(path, item, paint, number) for number, (path, item) in enumerate(found.explanations, 1)]
    return _filled(content)


def _fill_results(content: _Content, found: Found, reference: Reference, paint: _Painter) -> None:
    """Add the tables and figures of the results: first the methods, then their ablations."""
    ranked = ablations.ranked(variants(found.groups), reference)
    # If two runs have the same label, one of them also shows its folder, in every table and figure.
    named = scopes.by_scope([(group, tables.label_of(group, changed, reference)) for group, changed in ranked], reference)
    labelled = [item for _, own in named for item in own]
    centres = [group for group, changed in ranked if not changed]
    methods = [item for item in labelled if item[0] in centres]
    departing = [item for item in labelled if item not in methods]
    accuracy, content.efficiency = tables.result_tables(methods, reference, tables.relevant(methods, reference))
    content.accuracy = replace(accuracy, notes=[*accuracy.notes, *_chance_note(methods, reference)])
    content.verdicts = verdicts(methods, reference)
    content.published = None if tables.relevant(labelled, reference) else tables.published_table(reference)
    content.passes = _passes(scopes.with_distinct_cost(labelled, methods), reference, paint)
    for number, family in enumerate(ablations.families(ranked), 1):
        chance = scopes.chance(family.named(reference), family.dataset)
        draw = partial(compared.bars_figure, ablations.bars(family, reference), family.title(reference), chance)
        title = f"Ablations: {family.title(reference)}{f', runs in {family.folder}' if family.folder else ''}"
        picture = paint(draw, title, "Bars with 95 % intervals; the table has the numbers")
        content.ablations.append((picture, ablations.ablation_table(family, f"ablations{number}", reference)))
    if departing:
        content.ablated = [replace(table, name=f"ablated-{table.name}") for table in tables.result_tables(departing, reference)]
    series = {
        (dataset, scope): rows
        for scope, own in scopes.by_scope(methods, reference)
        for dataset in tables.test_sets(own)
        if (rows := scopes.by_steps(own, dataset))
    }
    for (dataset, scope), rows in series.items():
        name, styles = _named(dataset, scope, reference), compared.styles_of(rows, reference.labels.methods)
        if any(len(own) > 1 for own in rows.values()):
            draw = partial(compared.steps_figure, rows, styles, name, scopes.chance(methods, dataset))
            content.steps.append(paint(draw, f"Number of steps: {name}", "Accuracy by steps of the problem with 95 % intervals"))
        if any(row.confidence is not None for own in rows.values() for row in own):
            draw = partial(compared.calibration_figure, rows, styles, name)
            content.steps.append(paint(draw, f"Calibration: {name}", _CALIBRATION))
    content.steps_table = tables.steps_table(series, reference) if series else None
    content.provenance = provenance_table([group for group, _ in labelled])
    content.settings = [(group.path, yaml.safe_dump(group.aggregate.config, sort_keys=False)) for group, _ in labelled]


_CALIBRATION = "Mean confidence against accuracy, a point per number of steps; on the diagonal, confidence is accuracy"


def _chance_note(methods: tables.Labelled, reference: Reference) -> list[str]:
    known = {name: chance for name in tables.test_sets(methods) if (chance := scopes.chance(methods, name)) is not None}
    said = ", ".join(f"{100 * chance:.1f} % on {reference.dataset_label(name)}" for name, chance in known.items())
    return [f"Chance level, always giving the most common answer: {said}."] if said else []


def _passes(labelled: tables.Labelled, reference: Reference, paint: _Painter) -> list[Picture]:
    """Return a figure per test set and scope, with the reference points that have both numbers; none for a single point."""
    pictures = []
    for scope, own in scopes.by_scope(labelled, reference):
        styles = compared.styles_of([label for _, label in own], reference.labels.methods)
        for dataset in tables.test_sets(own):
            points = scopes.points(own, dataset, styles, reference)
            if len(points) < 2:
                continue
            name = _named(dataset, scope, reference)
            words = "; ".join(f"{p.label}: {p.accuracy:.1f} % at {p.passes:.1f}" for p in points)
            draw = partial(compared.passes_figure, points, name, scopes.chance(own, dataset))
            pictures.append(paint(draw, f"Accuracy against forward passes: {name}", words))
    return pictures


def _named(dataset: str, scope: str, reference: Reference) -> str:
    return ", ".join(filter(None, [reference.dataset_label(dataset), scope]))


def _losses(curves: Sequence[Curve], paint: _Painter) -> list[tuple[str, Picture | None]]:
    """Return a figure per configuration; None where too little was logged to plot a line."""
    found: list[tuple[str, Picture | None]] = []
    for path in dict.fromkeys(curve.path for curve in curves):
        own = sorted((curve for curve in curves if curve.path == path), key=lambda curve: (len(curve.name), curve.name))
        if not compared.drawn_terms(own):
            found.append((path, None))
            continue
        last = "; ".join(f"{curve.name} ends at {curve.scalars['train/loss'][-1][1]:.3g}" for curve in own if "train/loss" in curve.scalars)
        picture = paint(partial(compared.loss_figure, own), f"Losses: {path}", f"Each term by step, a line per seed. Total: {last}")
        found.append((path, picture))
    return found


def _explained(path: str, item: Explanation, paint: _Painter, number: int) -> _Explained:
    questions = []
    for view in item.questions:
        # The page shows the readout as a table instead.
        pictures, notes = _painted([drawing for drawing in question_drawings(view) if drawing.stem != "readout"], paint)
        questions.append(_Question(view, pictures, notes))
    pictures, notes = _painted(drawings(item), paint)
    effects = None if item.interventions is None else interventions_table(item.interventions, f"effects{number}")
    return _Explained(path, item, questions, pictures, effects, [*item.notes, *notes])


def _painted(found: Sequence[Drawing], paint: _Painter) -> tuple[list[Picture], list[str]]:
    """Return the figures that show something, and a sentence in place of each one that would be blank."""
    pictures = [paint(drawing.draw, drawing.title, drawing.words) for drawing in found if not drawing.blank]
    return pictures, [drawing.blank for drawing in found if drawing.blank]


def _filled(content: _Content) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kava.report", "data"),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    data: Any = resources.files("kava.report") / "data"
    assets: Mapping[str, str] = {name: (data / f"report.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    return environment.get_template("report.html.j2").render(content=content, **assets)
