"""Figure of the accuracies of a suite: a panel per data set, a row per run, a colour per variant, and a tick per seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kava.explain.figures import COLOURS, new_figure
from kava.report.group import Group
from kava.report.tables import interval_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL, _ROW = 2.2, 0.32
# Distance between the first and the last variant of a run, in rows.
_SPREAD = 0.5


def accuracy_figure(groups: Mapping[tuple[str, str], Group]) -> Figure:
    """Plot the mean accuracy with its 95 % interval, and the accuracy of each seed, in percent; groups are keyed by variant and run."""
    variants, runs = (list(dict.fromkeys(key[part] for key in groups)) for part in range(2))
    datasets = list(dict.fromkeys(name for group in groups.values() for name in group.aggregate.datasets))
    figure = new_figure(_PANEL * len(datasets) + 1, _ROW * len(runs) + 1.2)
    labelled: set[str] = set()
    panels = figure.subplots(1, len(datasets), squeeze=False, sharey=True)[0]
    for variant, run, dataset, data in ((*key, *item) for key, group in groups.items() for item in group.aggregate.datasets.items()):
        panel, index = panels[datasets.index(dataset)], variants.index(variant)
        row = runs.index(run) + _SPREAD * (index - (len(variants) - 1) / 2) / max(len(variants) - 1, 1)
        low, high = interval_of(data)
        mean, colour = 100 * data.accuracy_mean, COLOURS[index % len(COLOURS)]
        label = variant if variant not in labelled else None
        labelled.add(variant)
        panel.errorbar(mean, row, xerr=[[mean - low], [high - mean]], color=colour, marker="o", capsize=2, linestyle="none", label=label)
        if data.n > 1:
            seeds = [100 * seed.accuracy for seed in data.per_seed]
            panel.plot(seeds, [row] * len(seeds), color=colour, marker="|", linestyle="none", alpha=0.6)
    for panel, dataset in zip(panels, datasets, strict=True):
        panel.set(title=dataset, xlim=(0, 100), xlabel="accuracy, percent")
    panels[0].set_yticks(range(len(runs)), runs)
    panels[0].set_ylim(len(runs) - 0.5, -0.5)
    if len(variants) > 1:
        figure.legend(loc="outside lower center", ncols=len(variants), fontsize="small")
    return figure


def write_figure(path: Path, groups: Mapping[tuple[str, str], Group]) -> None:
    """Write `accuracy_figure` to a file; the same numbers give the same bytes."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "kava", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        accuracy_figure(groups).savefig(path, metadata={"Date": None})
