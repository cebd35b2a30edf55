"""Scaling of a training step: time and peak memory against Q, C, M, T, B and L, each doubled from one base point.

The times of an axis are measured in one process, with alternating points; the peak memory of each point in a fresh process. Both
are compared with formulas: FLOPs (`kava.tools.bench.flops`), and the number of entries that run through the layers.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kava.eviction import Trace, compress
from kava.tools.bench.flops import passes, shape_of, step_flops
from kava.tools.bench.record import Found
from kava.tools.bench.step import prepare_step
from kava.tools.bench.timing import MIB, Run, alternate, peak_memory
from kava.tools.bench.workload import Workload

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {"Q": "question", "C": "cot", "M": "latents", "T": "iterations", "B": "batch", "L": "layers"}
BASE = Workload(shape="small", batch=2, question=32, cot=32, answer=8, latents=32, iterations=1, lora_r=128, threads=1, layers=2)
LONG_QUESTION, LONG_LATENTS = 64, 24
# How far a measured exponent may exceed the exponent of its formula.
TOLERANCES = {"seconds": 0.25, "step alone MiB": 0.1}
_PANEL = 2.3


def measure_scaling(base: Workload, doublings: int, repeats: int, axes: Sequence[str] = tuple(AXES)) -> Found:
    """Measure a training step at every point; a row per axis and quantity, with power laws fitted to measured and formula values."""
    memory: dict[Workload, float] = {}
    rows = []
    for axis in axes:
        values = [getattr(base, AXES[axis]) * 2**number for number in range(doublings + 1)]
        points = [replace(base, **{AXES[axis]: value}) for value in values]
        for point in points:
            if point not in memory:
                memory[point] = peak_memory(prepare_step, point, "ours", device=base.device).above_rest / MIB
        runs = {str(value): prepare_step(point, "ours") for value, point in zip(values, points, strict=True)}
        seconds = [median(taken) for taken in alternate(runs, repeats, base.device).values()]
        rows.append(growth(axis, "seconds", values, seconds, [step_flops(point, shape_of(point)) for point in points]))
        rows.append(growth(axis, "step alone MiB", values, [memory[point] for point in points], [entries(point) for point in points]))
    less = {f"scaling.memory_formula_over_{row['axis']}": over_formula(row) for row in rows if row["what"] != "seconds"}
    return Found({"growth of a training step": rows}, less, faster_than_formulas(rows))


def growth(axis: str, what: str, values: list[int], measured: list[float], formula: Sequence[int | float]) -> dict[str, Any]:
    """Return one row: a quantity at the first and last value of an axis, and the exponents of its measured and formula growth."""
    return {
        "axis": axis, "what": what, "from": values[0], "to": values[-1], "first": measured[0], "last": measured[-1],
        "power": exponent(values, measured), "formula power": exponent(values, formula),
        "values": values, "measured": measured, "formula": list(formula),
    }  # fmt: skip


def entries(workload: Workload) -> int:
    """Return the tokens of all passes and rows, times layers; the memory kept for the backward pass is proportional to it."""
    return workload.batch * shape_of(workload).layers * sum(tokens for tokens, _ in passes(workload))


def exponent(values: Sequence[int], measured: Sequence[int | float]) -> float:
    """Return the exponent of the best-fitting power law (least squares of the logarithms)."""
    return float(np.polyfit(np.log(values), np.log(measured), 1)[0])


def faster_than_formulas(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a message for each axis along which time or memory grows faster than its formula."""
    return [
        f"NOT as the formulas say: {row['what']} grow with {row['axis']} to the power {row['power']:.2f}, "
        f"the formula's is {row['formula power']:.2f}"
        for row in rows
        if not row["power"] <= row["formula power"] + TOLERANCES[row["what"]]
    ]


def over_formula(row: dict[str, Any]) -> float:
    """Return the growth of the formula from the first point to the last, divided by the measured growth."""
    return float(row["formula"][-1] / row["formula"][0] / (row["last"] / row["first"]))


def scaling_figure(rows: Sequence[dict[str, Any]]) -> "Figure":
    """Plot time and memory against each axis, with the formula scaled to the same first point."""
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure = Figure(figsize=(_PANEL * len(axes), 2 * _PANEL), layout="constrained")
    panels = figure.subplots(2, len(axes), squeeze=False, sharey="row")
    for row in rows:
        panel = panels[list(TOLERANCES).index(row["what"])][axes.index(row["axis"])]
        panel.plot(row["values"], row["measured"], "o-", color="#0072B2", label="measured")
        scale = row["first"] / row["formula"][0]
        panel.plot(row["values"], [value * scale for value in row["formula"]], "--", color="#E69F00", label="formula")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel(row["axis"])
        panel.set_title(f"power {row['power']:.2f} (formula's {row['formula power']:.2f})", fontsize=8)
    for line, what in zip(panels, TOLERANCES, strict=True):
        line[0].set_ylabel(what)
    panels[0][0].legend(fontsize=8)
    return figure


def measure_long_trace(cot: int, shape: str, threads: int = 0) -> Found:
    """Measure a trace of `cot` tokens that is compressed to 24 entries: in `compress` alone, on a cache of SmolLM2-135M's shape, and in
    a whole training step of a model of shape `shape`."""
    step = Workload(shape=shape, batch=1, question=LONG_QUESTION, cot=cot, latents=LONG_LATENTS, threads=threads)
    measured = {
        "compress, 30 layers x 3 heads x 64": peak_memory(prepare_compress, cot, LONG_LATENTS),
        f"step, {shape}": peak_memory(prepare_step, step, "ours"),
    }
    rows = [{"work": name, **of.cost, "its own": of.above_rest / MIB} for name, of in measured.items()]
    return Found({f"a trace of {cot} tokens to {LONG_LATENTS} entries": rows})


def prepare_compress(cot: int, kept: int) -> Run:
    """Return a function that runs `compress` on random float32 keys and values of 30 layers and 3 heads of size 64."""
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(30, 1, 3, cot, 64, generator=generator) for _ in range(2))
    importance = torch.rand(30, 1, 3, cot, generator=generator)
    trace = Trace(keys, values, importance, torch.ones(1, cot, dtype=torch.bool), torch.zeros(1, dtype=torch.long))
    return partial(compress, trace, "rkv", kept, 0.1)
