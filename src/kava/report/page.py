"""`report.html`: one page with everything in it, from what `kava.report.runs` found. No file beside it, no network.

html = render_page(find_runs("outputs"), title="outputs")
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from kava import __version__
from kava.explain import figures as drawn
from kava.explain.record import Explanation, QuestionView
from kava.report import html_figures as compared
from kava.report import html_tables as tables
from kava.report.html_figures import Point, StepRow
from kava.report.reference import Reference, load_reference
from kava.report.runs import Curve, Found, Group, variants
from kava.report.svg import inline_svg
from kava.statistics import wilson_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure as it stands on the page."""

    svg: str
    caption: str


@dataclass
class _Painter:
    """Draws figures under ids that are unique on the page."""

    count: int = 0

    def __call__(self, draw: Callable[[], "Figure"], title: str, description: str) -> Picture:
        self.count += 1
        return Picture(inline_svg(draw, f"f{self.count}", title, description), f"{title}. {description}")


@dataclass(frozen=True)
class _Question:
    """One explained question, ready for the template."""

    view: QuestionView
    pictures: list[Picture]
    first: bool


@dataclass(frozen=True)
class _Explained:
    """One explained checkpoint."""

    path: str
    explanation: Explanation
    questions: list[_Question]
    pictures: list[Picture]
    effects: tables.Table | None


@dataclass
class _Content:
    title: str
    found: Found
    version: str = __version__
    accuracy: tables.Table | None = None
    efficiency: tables.Table | None = None
    passes: list[Picture] = field(default_factory=list)
    losses: list[Picture] = field(default_factory=list)
    ablations: list[Picture] = field(default_factory=list)
    steps: list[Picture] = field(default_factory=list)
    steps_table: tables.Table | None = None
    explained: list[_Explained] = field(default_factory=list)
    provenance: tables.Table | None = None
    settings: list[tuple[str, str]] = field(default_factory=list)


def render_page(found: Found, title: str) -> str:
    """The whole page as one text."""
    reference, paint = load_reference(), _Painter()
    labelled = [(group, tables.label_of(group, changed, reference)) for group, changed in variants(found.groups)]
    content = _Content(title, found)
    if labelled:
        content.accuracy = tables.accuracy_table(labelled, reference)
        content.efficiency = tables.efficiency_table(labelled, reference)
        content.passes = _passes(labelled, reference, paint)
        content.ablations = _ablations(labelled, reference, paint)
        series = _by_steps(labelled)
        content.steps = [
            paint(partial(compared.steps_figure, by_label, reference.dataset_label(dataset)), f"Number of steps: {dataset}", _STEPS)
            for dataset, by_label in series.items()
        ]
        content.steps_table = tables.steps_table(series) if series else None
        content.provenance = tables.provenance_table(found.groups)
        content.settings = [(group.path, yaml.safe_dump(group.aggregate.config, sort_keys=False)) for group, _ in labelled]
    content.losses = _losses(found.curves, paint)
    content.explained = [_explained(path, item, paint, number) for number, (path, item) in enumerate(found.explanations, 1)]
    return _filled(content)


_STEPS = "Left: accuracy by steps of the problem with 95 % intervals. Right: mean confidence against accuracy; the diagonal is calibrated."


def _passes(labelled: tables.Labelled, reference: Reference, paint: _Painter) -> list[Picture]:
    """A figure per test set, with the reference points that have both numbers."""
    pictures = []
    for dataset in dict.fromkeys(name for group, _ in labelled for name in group.aggregate.datasets):
        points = [
            Point(_with_form(group, label, labelled), data.forward_passes_mean, 100 * data.accuracy_mean, tables.interval_of(data))
            for group, label in labelled
            if (data := group.aggregate.datasets.get(dataset)) is not None
        ]
        points += _reference_points(labelled, reference, dataset)
        draw = partial(compared.passes_figure, points, reference.dataset_label(dataset))
        words = "; ".join(f"{p.label}: {p.accuracy:.1f} % at {p.passes:.1f}" for p in points)
        pictures.append(paint(draw, f"Accuracy against forward passes: {reference.dataset_label(dataset)}", words))
    return pictures


def _reference_points(labelled: tables.Labelled, reference: Reference, dataset: str) -> list[Point]:
    rows = [row for row in tables.relevant(labelled, reference) if row.dataset == dataset and not row.settings]
    passes = {(row.source, row.method, row.model, row.train_dataset): row.forward_passes for row in rows if row.forward_passes}
    points = []
    for row in rows:
        cost = passes.get((row.source, row.method, row.model, row.train_dataset))
        if row.accuracy is not None and cost is not None:
            points.append(Point(f"{reference.method_label(row.method)}, {row.source}", cost, row.accuracy, None, ours=False))
    return points


def _with_form(group: Group, label: str, labelled: tables.Labelled) -> str:
    """The label, with model and training data where more than one family of them is on the page."""
    families = {other.family[:3] for other, _ in labelled}
    if len(families) == 1:
        return label
    model, data, form = (part.rpartition("/")[2].replace("_", " ") for part in group.family[:3])
    parts = zip((model, data, form), zip(*families, strict=True), strict=True)
    return ", ".join([label, *(part for part, values in parts if len(set(values)) > 1)])


def _ablations(labelled: tables.Labelled, reference: Reference, paint: _Painter) -> list[Picture]:
    """Bars for every family of at least two configurations, on the test set that most of them have, the centre first."""
    pictures = []
    plain = {reference.method_label(group.aggregate.method) for group, _ in labelled}
    for family in dict.fromkeys(group.family for group, _ in labelled):
        own = sorted(((g, label) for g, label in labelled if g.family == family), key=lambda item: item[1] not in plain)
        if len(own) < 2:
            continue
        measured = Counter(name for group, _ in own for name in group.aggregate.datasets)
        dataset = max(measured, key=lambda name: measured[name])
        bars = [
            (label, 100 * data.accuracy_mean, tables.interval_of(data))
            for group, label in own
            if (data := group.aggregate.datasets.get(dataset)) is not None
        ]
        name = f"{reference.method_label(family[3])} on {reference.dataset_label(dataset)}"
        words = "; ".join(f"{label} {value:.1f} %" for label, value, _ in bars)
        pictures.append(paint(partial(compared.bars_figure, bars, name), f"Ablations: {name}", words))
    return pictures


def _losses(curves: Sequence[Curve], paint: _Painter) -> list[Picture]:
    pictures = []
    for path in dict.fromkeys(curve.path for curve in curves):
        own = [curve for curve in curves if curve.path == path]
        last = "; ".join(f"{curve.name} ends at {curve.scalars['train/loss'][-1][1]:.3g}" for curve in own if "train/loss" in curve.scalars)
        pictures.append(paint(partial(compared.loss_figure, own), f"Losses: {path}", f"Each term by step, a line per seed. Total: {last}"))
    return pictures


def _by_steps(labelled: tables.Labelled) -> dict[str, dict[str, list[StepRow]]]:
    """Data set -> label -> a row per number of steps, where the per-question files know it."""
    series: dict[str, dict[str, list[StepRow]]] = {}
    for group, label in labelled:
        for dataset, rows in group.rows.items():
            found = []
            for steps in sorted({row.steps for row in rows if row.steps is not None}):
                own = [row for row in rows if row.steps == steps]
                correct = sum(row.correct for row in own)
                known = [row.confidence for row in own if row.confidence is not None]
                confidence = sum(known) / len(known) if known else None
                found.append(StepRow(steps, len(own), correct, wilson_interval(correct, len(own)), confidence))
            if found:
                series.setdefault(dataset, {})[_with_form(group, label, labelled)] = found
    return series


def _explained(path: str, item: Explanation, paint: _Painter, number: int) -> _Explained:
    pictures = []
    if item.convergence is not None:
        draw = partial(drawn.convergence_figure, item.convergence)
        pictures.append(paint(draw, "Convergence", "Left: distance of the latents to the fixed point T = M. Right: answers by T"))
    if item.interventions is not None:
        draw = partial(drawn.interventions_figure, item.interventions)
        pictures.append(paint(draw, "Interventions", "Share of answers that change when one latent is disturbed, with 95 % intervals"))
    if item.mean_similarity is not None:
        for what, layers in (("keys", item.mean_similarity.keys), ("values", item.mean_similarity.values)):
            pictures.append(paint(partial(drawn.similarity_figure, layers, what), f"Similarity of {what}, mean", _SIMILARITY))
    questions = [_Question(view, _question_pictures(view, paint), index == 0) for index, view in enumerate(item.questions)]
    effects = None if item.interventions is None else tables.interventions_table(item.interventions, f"effects{number}")
    return _Explained(path, item, questions, pictures, effects)


_SIMILARITY = "Cosine of each latent's cache entry (row) with each kept entry of the teacher (column), a panel per layer"


def _question_pictures(view: QuestionView, paint: _Painter) -> list[Picture]:
    pictures = [
        paint(partial(drawn.attention_figure, view), "Attention", "Where the answer looks: each latent per layer, and parts of text")
    ]
    if view.kept is not None:
        pictures.append(paint(partial(drawn.kept_figure, view.kept), "Kept tokens", "Tokens of the trace that each layer and head kept"))
    if view.similarity is not None:
        for what, layers in (("keys", view.similarity.keys), ("values", view.similarity.values)):
            pictures.append(paint(partial(drawn.similarity_figure, layers, what), f"Similarity of {what}", _SIMILARITY))
    return pictures


def _filled(content: _Content) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kava.report", "data"),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    data: Any = resources.files("kava.report") / "data"
    assets: Mapping[str, str] = {name: (data / f"report.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    return environment.get_template("report.html.j2").render(content=content, **assets)
