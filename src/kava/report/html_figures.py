"""Figures of the report that compare runs: accuracy against forward passes, losses, ablations, accuracy and confidence by steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

from kava.config import LossConfig
from kava.explain.figures import COLOURS, new_figure, text_colour
from kava.report.runs import Curve
from kava.report.steps import StepRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_POINTS = 200
# Names of the loss terms, as in docs/notation.md.
TOTAL = "train/loss"
TERMS = {
    TOTAL: "L, total",
    **{f"train/{name}": f"CE {name[:-3]}" if name.endswith("_ce") else f"L_{name.upper()}" for name in LossConfig().weights},
    "eval/accuracy": "validation accuracy",
}
CHANCE = "always the most common answer"
_WRAP = 30
# Height of one line of a legend, in inches.
_LEGEND_LINE = 0.17


@dataclass(frozen=True)
class Style:
    """Style of a method: colour (None: the text colour of the page), marker, and whether it is highlighted."""

    colour: str | None
    marker: str
    strong: bool = False

    @property
    def drawn(self) -> dict[str, Any]:
        """Keyword arguments for matplotlib lines."""
        size = {"markersize": 9, "linewidth": 2.6, "zorder": 5} if self.strong else {"markersize": 5, "linewidth": 1.3}
        return {"color": self.colour or text_colour(), "marker": self.marker, **size}


# KaVa has the strongest colour; full CoT and no CoT, its upper and lower bound, are in the text colour and grey.
METHOD_STYLES = {
    "kava": Style("#D55E00", "o", strong=True), "full_cot": Style(None, "D"), "no_cot": Style("#7F7F7F", "s"),
    "codi": Style("#0072B2", "^"), "pccot": Style("#009E73", "v"), "coconut": Style("#CC79A7", "P"), "icot": Style("#E69F00", "X"),
    "simcot": Style("#56B4E9", "*"),
}  # fmt: skip
_OTHERS = [Style(colour, marker) for marker in "dph<>8" for colour in COLOURS if colour not in ("#D55E00", "#7F7F7F")]


def styles_of(labels: Iterable[str], methods: Mapping[str, str]) -> dict[str, Style]:
    """Return a style per label. A method has the same style in every figure; other labels, such as ablations, get styles of their own.

    Args:
        labels: labels to draw.
        methods: name of a method -> its label.
    """
    known = {label: METHOD_STYLES[name] for name, label in methods.items() if name in METHOD_STYLES}
    others = [label for label in dict.fromkeys(labels) if label not in known]
    return known | {label: _OTHERS[index % len(_OTHERS)] for index, label in enumerate(others)}


@dataclass(frozen=True)
class Point:
    """Forward passes and accuracy of one configuration, the accuracy and its interval in percent; `ours` is False for published numbers."""

    label: str
    style: Style
    passes: float
    accuracy: float
    interval: tuple[float, float] | None
    ours: bool = True


def passes_figure(points: Sequence[Point], dataset: str, chance: float | None = None) -> Figure:
    """Plot accuracy against forward passes; reference points are hollow, the chance level (a fraction) is a dotted line."""
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    labels = [*(point.label for point in points), *([CHANCE] if chance is not None else [])]
    figure = new_figure(4.6, 2.5 + _legend_height(labels))
    axes = figure.subplots()
    for point in points:
        bounds = None if point.interval is None else [[point.accuracy - point.interval[0]], [point.interval[1] - point.accuracy]]
        drawn = point.style.drawn | {"linestyle": "none", "label": fill(point.label, _WRAP)}
        if not point.ours:
            drawn["markerfacecolor"] = "none"
        axes.errorbar(point.passes, point.accuracy, yerr=bounds, capsize=2, **drawn)
    _chance_line(axes.axhline, chance)
    costs = [point.passes for point in points]
    if max(costs) > 4 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks([tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if min(costs) / 1.6 <= tick <= max(costs) * 1.6])
    axes.set(xlabel="forward passes per question", ylabel="accuracy, percent", title=dataset)
    axes.set_ylim(bottom=0)
    _legend(figure, labels)
    return figure


def drawn_terms(curves: Sequence[Curve]) -> list[str]:
    """Return the tags to plot: those with at least two points that are not all zero.

    The total loss is left out if it equals one of its terms in every curve.
    """
    found = [
        tag for tag in TERMS if any(len(points := curve.scalars.get(tag, [])) > 1 and any(value for _, value in points) for curve in curves)
    ]
    twin = any(tag != TOTAL and all(curve.scalars.get(tag) == curve.scalars.get(TOTAL) for curve in curves) for tag in found)
    return [tag for tag in found if not (twin and tag == TOTAL)]


def loss_figure(curves: Sequence[Curve]) -> Figure:
    """Plot one panel per loss term and one for the validation accuracy, with a line per seed."""
    tags = drawn_terms(curves)
    columns = min(3, len(tags))
    rows = -(-len(tags) // columns)
    figure = new_figure(2.3 * columns + 0.4, 1.9 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False)
    for place, panel in enumerate(panels.flat):
        if place >= len(tags):
            panel.set_axis_off()
            continue
        for index, curve in enumerate(curves):
            if points := _thinned(curve.scalars.get(tags[place], [])):
                panel.plot(*zip(*points, strict=True), color=COLOURS[index % len(COLOURS)], linewidth=1, label=curve.name)
        panel.set_title(TERMS[tags[place]])
        panel.set_ylim(bottom=0)
        panel.tick_params(labelsize="small")
    for panel in panels.flat[max(0, len(tags) - columns) : len(tags)]:
        panel.set_xlabel("optimizer step")
    names = [curve.name for curve in curves]
    columns = 4 if max(map(len, names)) <= _WRAP // 2 else _legend_columns(names)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize="small")
    return figure


def bars_figure(bars: Sequence[tuple[str, float, tuple[float, float]]], title: str, chance: float | None = None) -> Figure:
    """Plot horizontal bars with intervals, in percent; the first bar is the baseline of the others."""
    labels = [fill(label, _WRAP) for label, _, _ in bars]
    lines = sum(label.count("\n") for label in labels)
    figure = new_figure(5.1, (0.34 if len(bars) < 10 else 0.24) * len(bars) + 0.14 * lines + 1.0 + _legend_height([CHANCE] * bool(chance)))
    axes = figure.subplots()
    values = [value for _, value, _ in bars]
    bounds = [[value - low for _, value, (low, _) in bars], [high - value for _, value, (_, high) in bars]]
    centre = METHOD_STYLES["kava"].colour
    colours = [centre, *["#8FA3B5"] * (len(bars) - 1)]
    axes.barh(range(len(bars)), values, xerr=bounds, color=colours, error_kw={"elinewidth": 0.8, "capsize": 2, "ecolor": text_colour()})
    axes.axvline(values[0], color=centre, linewidth=0.8, linestyle="--")
    _chance_line(axes.axvline, chance)
    axes.set_yticks(range(len(bars)), labels)
    axes.set(xlabel="accuracy, percent", title=title, xlim=(0, None), ylim=(len(bars) - 0.4, -0.6))
    if chance is not None:
        _legend(figure, [CHANCE])
    return figure


def steps_figure(series: Mapping[str, Sequence[StepRow]], styles: Mapping[str, Style], title: str, chance: float | None = None) -> Figure:
    """Plot accuracy by number of steps, with intervals."""
    from matplotlib.ticker import MaxNLocator

    labels = [*series, *([CHANCE] if chance is not None else [])]
    figure = new_figure(4.6, 2.5 + _legend_height(labels))
    axes = figure.subplots()
    for label, rows in series.items():
        accuracy = [100 * row.accuracy for row in rows]
        bounds = [[100 * (row.accuracy - row.interval[0]) for row in rows], [100 * (row.interval[1] - row.accuracy) for row in rows]]
        drawn = styles[label].drawn | {"label": fill(label, _WRAP)}
        axes.errorbar([row.steps for row in rows], accuracy, yerr=bounds, capsize=2, **drawn)
    _chance_line(axes.axhline, chance)
    axes.set(xlabel="steps of the problem", ylabel="accuracy, percent", title=title, ylim=(0, 104))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, labels)
    return figure


def calibration_figure(series: Mapping[str, Sequence[StepRow]], styles: Mapping[str, Style], title: str) -> Figure:
    """Plot accuracy (y axis) against mean confidence (x axis), a point per number of steps."""
    figure = new_figure(4.6, 2.5 + _legend_height([*series]))
    axes = figure.subplots()
    for label, rows in series.items():
        known = [(100 * row.confidence, 100 * row.accuracy) for row in rows if row.confidence is not None]
        if known:
            drawn = styles[label].drawn | {"linestyle": ":", "linewidth": 1, "label": fill(label, _WRAP)}
            axes.plot(*zip(*known, strict=True), **drawn)
    axes.plot([0, 100], [0, 100], color=COLOURS[7], linewidth=0.8, linestyle="--")
    axes.set(xlabel="mean confidence, percent", ylabel="accuracy, percent", title=title, xlim=(0, 104), ylim=(0, 104))
    _legend(figure, [*series])
    return figure


def _chance_line(draw: Callable[..., Any], chance: float | None) -> None:
    if chance is not None:
        draw(100 * chance, color=text_colour(), linewidth=1, linestyle=":", label=CHANCE)


def _legend(figure: Figure, labels: Sequence[str]) -> None:
    figure.legend(loc="outside lower center", ncols=_legend_columns(labels), fontsize="small")


def _legend_columns(labels: Sequence[str]) -> int:
    """Return 2 if all labels are short, else 1, so that no label extends beyond the figure."""
    return 2 if max(map(len, labels), default=0) <= _WRAP else 1


def _legend_height(labels: Sequence[str]) -> float:
    lines = [len(fill(label, _WRAP).splitlines()) for label in labels]
    return _LEGEND_LINE * -(-sum(lines) // _legend_columns(labels)) if labels else 0.0


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most MAX_POINTS + 1 points, including the last one: more points than pixels only increase the size of the page."""
    stride = -(-len(points) // MAX_POINTS)
    return [*points[:-1:stride], points[-1]] if stride > 1 else points
