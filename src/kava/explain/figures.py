"""Figures of an explanation, with matplotlib; one function per figure, from plain numbers.

for name, figure in figures(explanation): figure.savefig(f"{name}.png")
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from kava.explain.record import Convergence, Explanation, Grid, Interventions, Kept, QuestionView, Similarity, StepResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Based on Okabe & Ito's palette: distinguishable for colour-blind readers, on light and dark backgrounds.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A8A00", "#7F7F7F")
PANEL = (2.1, 2.1)
# Fonts with Chinese, Japanese and Korean letters, as Linux, macOS and Windows bring them.
_CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "PingFang SC",
              "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Arial Unicode MS")  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A figure before it is drawn.

    Attributes:
        stem: name of its file, without the suffix.
        title, words: what it shows, for a caption.
        draw: function that makes the figure.
        blank: sentence to show in place of a figure without content; empty if there is something to see.
    """

    stem: str
    title: str
    words: str
    draw: Callable[[], Figure]
    blank: str = ""


def figures(explanation: Explanation) -> Iterator[tuple[str, Figure]]:
    """Yield every figure that the explanation has numbers for, as (file stem, figure)."""
    named = [
        (f"question{number}_{drawing.stem}", drawing)
        for number, view in enumerate(explanation.questions, 1)
        for drawing in question_drawings(view)
    ]
    for stem, drawing in [*named, *((drawing.stem, drawing) for drawing in drawings(explanation))]:
        with any_text():
            figure = drawing.draw()
        yield stem, figure


def question_drawings(view: QuestionView) -> list[Drawing]:
    """Return the figures of one question."""
    found = [
        Drawing("readout", "Top tokens", "Top token of every latent by iteration, with its probability", partial(readout_figure, view)),
        Drawing(
            "attention", "Attention", "Where the answer looks: each latent per layer, and parts of text", partial(attention_figure, view)
        ),
    ]
    if view.kept is not None:
        blank = "Every layer and head kept every token of the trace." if min(view.kept.share) >= 1 else ""
        words = "Tokens of the trace that each layer and head kept"
        found.append(Drawing("kept", "Kept tokens", words, partial(kept_figure, view.kept), blank))
    return found + _similarities("{}", "Similarity of {}", view.similarity)


def drawings(explanation: Explanation) -> list[Drawing]:
    """Return the figures over all questions."""
    found = []
    if (convergence := explanation.convergence) is not None:
        words = "Left: distance of the latents to the fixed point T = M. Right: answers by T"
        found.append(Drawing("convergence", "Convergence", words, partial(convergence_figure, convergence)))
    if (interventions := explanation.interventions) is not None:
        words = "Share of answers that change when one latent is disturbed, with 95 % intervals"
        blank = "" if any(effect.changed for effect in interventions.effects) else "No disturbed latent changed an answer."
        found.append(Drawing("interventions", "Interventions", words, partial(interventions_figure, interventions), blank))
    if results := explanation.intermediate:
        words = "; ".join(item.in_words() for item in results)
        above = any(item.above_chance for item in results)
        blank = "" if above else "No latent decodes to a step's result more often than by chance."
        found.append(Drawing("intermediate", "Intermediate results", words, partial(intermediate_figure, results), blank))
    return found + _similarities("mean_{}", "Similarity of {}, mean", explanation.mean_similarity)


def _similarities(stem: str, title: str, found: Similarity | None) -> list[Drawing]:
    words = "Cosine of each latent's cache entry (row) with each kept entry of the teacher (column), a panel per layer"
    layers = {} if found is None else {"keys": found.keys, "values": found.values}
    return [
        Drawing(stem.format(what), title.format(what), words, partial(similarity_figure, cosines, what)) for what, cosines in layers.items()
    ]


@contextmanager
def any_text() -> Iterator[None]:
    """Make and save figures inside with names and tokens as they are, in any script, and dollar signs that are no mathematics.

    The installed ones of `_CJK_FONTS` have what the usual font lacks; letters that no font has are boxes, without a warning for each.
    """
    import matplotlib as mpl
    from matplotlib.font_manager import fontManager

    present = set(fontManager.get_font_names())
    families = [*mpl.rcParams["font.family"], *(name for name in _CJK_FONTS if name in present)]
    with mpl.rc_context({"font.family": families, "text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return a figure outside pyplot's global state, so that threads and long runs leak no memory."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def text_colour() -> str:
    """Return the text colour of the caller's style; by default matplotlib draws the error bars of bar charts in black in any style."""
    import matplotlib as mpl

    return str(mpl.rcParams["text.color"])


def similarity_figure(layers: list[Grid], what: str) -> Figure:
    """M x M cosines, a panel per layer, one colour scale from -1 to 1."""
    from matplotlib.figure import Figure

    columns = min(4, len(layers))
    rows = -(-len(layers) // columns)
    width, height = PANEL[0] * columns + 0.8, PANEL[1] * rows + 0.5
    # Fixed margins, in inches: automatic layout takes longer than drawing, and training draws two of these figures per epoch.
    left, right, bottom, top = 0.65 / width, 1 - 1.0 / width, 0.6 / height, 1 - 0.3 / height
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    figure.subplots_adjust(left, bottom, right, top, wspace=0.08, hspace=0.2)
    for index, panel in enumerate(axes.flat):
        if index >= len(layers):
            panel.set_axis_off()
            continue
        image = panel.imshow(layers[index], vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto", interpolation="nearest")
        panel.set_title(f"layer {index}", fontsize="medium")
        _whole_numbers(panel)
    figure.supxlabel(f"teacher's kept {what}, in time order", fontsize="medium")
    figure.supylabel("student's latent", fontsize="medium")
    scale = figure.add_axes((right + 0.15 / width, bottom + 0.1 * (top - bottom), 0.12 / width, 0.8 * (top - bottom)))
    figure.colorbar(image, cax=scale, label="cosine", ticks=(-1, 0, 1))
    return figure


def readout_figure(view: QuestionView) -> Figure:
    """Probability of the top token of every latent (columns) at every iteration (rows), with the token as text."""
    top = [[latent[0] for latent in row] for row in view.probabilities]
    figure = new_figure(max(4.0, 0.55 * len(top[0]) + 1.5), 0.42 * len(top) + 1.2)
    axes = figure.subplots()
    image = axes.imshow(top, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for t, row in enumerate(view.tokens):
        for i, latent in enumerate(row):
            colour = "white" if top[t][i] > 0.55 else "black"
            axes.text(i, t, latent[0][:6], ha="center", va="center", fontsize="small", color=colour)
    # A single row shows the final latents: those of a sequential method, or of T = 0.
    axes.set_yticks(range(len(top)), ["prefill", *map(str, range(1, len(top)))] if len(top) > 1 else ["last"])
    axes.set(xlabel="latent", ylabel="iteration")
    _whole_numbers(axes, vertical=False)
    figure.colorbar(image, ax=axes, label="probability")
    return figure


def attention_figure(view: QuestionView) -> Figure:
    """Attention of the answer to each latent per layer (mean over heads), and to the parts of the text."""
    layers = view.attention.latents
    mean = [[sum(head[i] for head in heads) / len(heads) for i in range(len(heads[0]))] for heads in layers]
    figure = new_figure(7.0, 0.22 * len(layers) + 2.2)
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    image = left.imshow(mean, cmap="viridis", aspect="auto", vmin=0)
    left.set(xlabel="latent", ylabel="layer", title="attention of the answer")
    _whole_numbers(left)
    figure.colorbar(image, ax=left)
    below = [0.0] * len(layers)
    for colour, (name, part) in zip(COLOURS, view.attention.parts.items(), strict=False):
        right.barh(range(len(layers)), part, left=below, color=colour, label=name)
        below = [a + b for a, b in zip(below, part, strict=True)]
    right.invert_yaxis()
    right.set(xlim=(0, 1), title="by part", xlabel="share")
    _whole_numbers(right, horizontal=False)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return figure


def kept_figure(kept: Kept) -> Figure:
    """Which tokens of the trace (columns) each layer and KV head (rows) kept."""
    rows = [heads for layer in kept.positions for heads in layer]
    # NaN is not drawn, so the background shows through, whatever its colour.
    grid = [[1.0 if i in row else float("nan") for i in range(len(kept.tokens))] for row in rows]
    figure = new_figure(max(4.0, 0.22 * len(kept.tokens) + 1.6), 0.16 * len(rows) + 1.5)
    axes = figure.subplots()
    axes.imshow(grid, cmap="Greens", vmin=0, vmax=1.4, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(kept.tokens)), [token.strip() or repr(token) for token in kept.tokens], rotation=90, fontsize="small")
    heads = len(kept.positions[0])
    axes.set_yticks([heads * layer - 0.5 for layer in range(len(kept.positions))], map(str, range(len(kept.positions))))
    axes.set(ylabel=f"layer ({heads} KV head{'s' if heads > 1 else ''} each)", title=f"kept by {kept.eviction}")
    axes.grid(axis="y", color="#999999", linewidth=0.5)
    return figure


def intermediate_figure(found: Sequence[StepResults]) -> Figure:
    """Share of questions in which a latent (column) decodes to a step's result (row), minus the share expected by chance."""
    rows = [
        (
            f"{item.steps} step{'s' if item.steps > 1 else ''}, result {number}",
            [own - other for own, other in zip(held, chance, strict=True)],
        )
        for item in found
        for number, (held, chance) in enumerate(zip(item.held, item.by_chance, strict=True), 1)
    ]
    figure = new_figure(max(5.0, 0.42 * len(rows[0][1]) + 2.4), 0.36 * len(rows) + 1.2)
    axes = figure.subplots()
    image = axes.imshow([row for _, row in rows], vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set(xlabel="latent", title="results that latents decode to")
    _whole_numbers(axes, vertical=False)
    figure.colorbar(image, ax=axes, label="share above chance")
    return figure


def convergence_figure(convergence: Convergence) -> Figure:
    """Distance to the fixed point per iteration (one line per latent and their mean), and the answers over T."""
    figure = new_figure(7.0, 3.2)
    left, right = figure.subplots(1, 2)
    steps = range(len(convergence.distance))
    for latent in zip(*convergence.distance, strict=True):
        left.plot(steps, latent, color=COLOURS[7], linewidth=0.6, alpha=0.6)
    left.plot(steps, [sum(row) / len(row) for row in convergence.distance], color=COLOURS[0], marker="o", label="mean over latents")
    left.axvline(convergence.trained_iterations, color=COLOURS[4], linestyle="--", label=f"configured T = {convergence.trained_iterations}")
    left.set(xlabel="iteration", ylabel="|h_t - h_M| / |h_M|", title="distance to the fixed point", ylim=(0, None))
    answers = convergence.answers
    over = [item.iterations for item in answers]
    agreement = [100 * item.agreement for item in answers]
    bounds = [[100 * (item.agreement - item.agreement_ci95[0]) for item in answers],
              [100 * (item.agreement_ci95[1] - item.agreement) for item in answers]]  # fmt: skip
    right.errorbar(over, agreement, yerr=bounds, color=COLOURS[0], marker="o", capsize=2, label="same answer as at T = M")
    if all(item.accuracy is not None for item in answers):
        right.plot(over, [100 * (item.accuracy or 0) for item in answers], color=COLOURS[1], marker="s", label="accuracy")
    right.axvline(convergence.trained_iterations, color=COLOURS[4], linestyle="--")
    right.set(xlabel="T at inference", ylabel="percent", title=f"answers ({convergence.questions} questions)", ylim=(0, 104))
    entries = [panel.get_legend_handles_labels() for panel in (left, right)]
    figure.legend(*(first + second for first, second in zip(*entries, strict=True)), loc="outside lower center", ncols=2, fontsize="small")
    return figure


def interventions_figure(found: Interventions) -> Figure:
    """Share of changed answers per latent and kind of intervention, with 95 % intervals; the last group is all latents at once."""
    figure = new_figure(7.0, 2.9)
    axes = figure.subplots()
    kinds = list(dict.fromkeys(effect.kind for effect in found.effects))
    for number, kind in enumerate(kinds):
        own = [effect for effect in found.effects if effect.kind == kind]
        places = [index + 0.25 * (number - 1) for index in range(len(own))]
        shares = [100 * effect.changed for effect in own]
        bounds = [[share - 100 * effect.changed_ci95[0] for share, effect in zip(shares, own, strict=True)],
                  [100 * effect.changed_ci95[1] - share for share, effect in zip(shares, own, strict=True)]]  # fmt: skip
        axes.bar(
            places, shares, 0.24, yerr=bounds, color=COLOURS[number], error_kw={"elinewidth": 0.7, "ecolor": text_colour()}, label=kind
        )
    labels = ["all" if effect.latent is None else str(effect.latent) for effect in found.effects if effect.kind == kinds[0]]
    axes.set_xticks(range(len(labels)), labels)
    axes.set(xlabel="disturbed latent", ylabel="changed answers, percent", title=f"one latent disturbed ({found.questions} questions)")
    axes.set_ylim(0, 100)
    figure.legend(loc="outside lower center", ncols=len(kinds), fontsize="small")
    return figure


def _whole_numbers(axes: Axes, horizontal: bool = True, vertical: bool = True) -> None:
    from matplotlib.ticker import MaxNLocator

    for axis, wanted in ((axes.xaxis, horizontal), (axes.yaxis, vertical)):
        if wanted:
            axis.set_major_locator(MaxNLocator(6, integer=True))
