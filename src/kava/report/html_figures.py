"""Figures of the report that compare runs: accuracy against forward passes, losses, ablations, accuracy by number of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING

from kava.config import LossConfig
from kava.explain.figures import COLOURS, new_figure, text_colour
from kava.report.runs import Curve
from kava.report.steps import StepRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 200
# What the terms are called in docs/notation.md.
TERMS = {
    "train/loss": "L, total",
    **{f"train/{name}": f"CE {name[:-3]}" if name.endswith("_ce") else f"L_{name.upper()}" for name in LossConfig().weights},
    "eval/accuracy": "validation accuracy",
}
MARKERS = "osD^vPX*"
# Inches that a row of a figure's legend takes.
_LEGEND_ROW = 0.17


@dataclass(frozen=True)
class Point:
    """One configuration in the plane of cost and accuracy (percent, with its interval); `style` chooses colour and marker."""

    label: str
    style: int
    passes: float
    accuracy: float
    interval: tuple[float, float] | None
    ours: bool = True


def passes_figure(points: Sequence[Point], dataset: str) -> Figure:
    """Accuracy against forward passes; reference points are hollow."""
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = new_figure(4.6, 2.5 + _LEGEND_ROW * -(-len(points) // 2))
    axes = figure.subplots()
    for point in points:
        bounds = None if point.interval is None else [[point.accuracy - point.interval[0]], [point.interval[1] - point.accuracy]]
        colour, marker = _style(point.style)
        axes.errorbar(
            point.passes, point.accuracy, yerr=bounds, color=colour, capsize=2, linestyle="none", marker=marker,
            markerfacecolor=colour if point.ours else "none", label=point.label,
        )  # fmt: skip
    costs = [point.passes for point in points]
    if max(costs) > 4 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks([tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if min(costs) / 1.6 <= tick <= max(costs) * 1.6])
    axes.set(xlabel="forward passes per question", ylabel="accuracy, percent", title=dataset)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure


def loss_figure(curves: Sequence[Curve]) -> Figure:
    """A panel per term of the loss and one for the validation accuracy, a line per seed."""
    tags = [tag for tag in TERMS if any(tag in curve.scalars for curve in curves)]
    columns = min(3, len(tags))
    rows = -(-len(tags) // columns)
    figure = new_figure(2.5 * columns + 0.3, 1.9 * rows + 0.4)
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
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return figure


def bars_figure(bars: Sequence[tuple[str, float, tuple[float, float]]], title: str) -> Figure:
    """Horizontal bars with intervals, in percent; the first is the one that the others depart from."""
    labels = [fill(label, 36) for label, _, _ in bars]
    lines = sum(label.count("\n") for label in labels)
    figure = new_figure(5.4, (0.34 if len(bars) < 10 else 0.24) * len(bars) + 0.1 * lines + 1.0)
    axes = figure.subplots()
    values = [value for _, value, _ in bars]
    bounds = [[value - low for _, value, (low, _) in bars], [high - value for _, value, (_, high) in bars]]
    colours = [COLOURS[0], *[COLOURS[5]] * (len(bars) - 1)]
    axes.barh(range(len(bars)), values, xerr=bounds, color=colours, error_kw={"elinewidth": 0.8, "capsize": 2, "ecolor": text_colour()})
    axes.axvline(values[0], color=COLOURS[0], linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(bars)), labels)
    axes.set(xlabel="accuracy, percent", title=title, xlim=(0, None), ylim=(len(bars) - 0.4, -0.6))
    return figure


def steps_figure(series: Mapping[str, Sequence[StepRow]], styles: Mapping[str, int], title: str) -> Figure:
    """Left: accuracy by number of steps, with intervals. Right: mean confidence against accuracy, a point per number of steps."""
    figure = new_figure(6.6, 2.7 + _LEGEND_ROW * -(-len(series) // 3))
    left, right = figure.subplots(1, 2)
    for label, rows in series.items():
        colour, marker = _style(styles[label])
        accuracy = [100 * row.accuracy for row in rows]
        bounds = [[100 * (row.accuracy - row.interval[0]) for row in rows], [100 * (row.interval[1] - row.accuracy) for row in rows]]
        left.errorbar([row.steps for row in rows], accuracy, yerr=bounds, color=colour, marker=marker, capsize=2, label=label)
        known = [(100 * row.confidence, 100 * row.accuracy) for row in rows if row.confidence is not None]
        if known:
            right.plot(*zip(*known, strict=True), color=colour, marker=marker, linestyle=":")
    left.set(xlabel="steps of the problem", ylabel="accuracy, percent", title=title, ylim=(0, 104))
    _integer_axis(left)
    right.plot([0, 100], [0, 100], color=COLOURS[7], linewidth=0.8, linestyle="--")
    right.set(xlabel="mean confidence, percent", ylabel="accuracy, percent", title="calibration", xlim=(0, 104), ylim=(0, 104))
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure


def _style(index: int) -> tuple[str, str]:
    """Colour and marker; more than eight get other markers in the same colours."""
    return COLOURS[index % len(COLOURS)], MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most MAX_POINTS points, the last one among them: more than a panel's pixels only make the page heavy."""
    stride = -(-len(points) // MAX_POINTS)
    return [*points[:-1:stride], points[-1]] if stride > 1 else points


def _integer_axis(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
