"""How a training step grows: seconds and peak memory against Q, C, M, T, B and L, each doubled from one base point.

Seconds of an axis come from one process, whose points take turns; the peak memory of each point from a fresh process. Beside
them stands what the formulas say: FLOPs (`kava.tools.bench.flops`), and entries that run through the layers.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from statistics import median
from typing import Any

from kava.tools.bench.flops import passes, shape_of, step_flops
from kava.tools.bench.step import prepare_step
from kava.tools.bench.timing import Run, alternate, peak_memory
from kava.tools.bench.workload import Workload

AXES = {"Q": "question", "C": "cot", "M": "latents", "T": "iterations", "B": "batch", "L": "layers"}
BASE = Workload(shape="small", batch=2, question=32, cot=32, answer=8, latents=32, iterations=1, lora_r=128, threads=1, layers=2)
LONG_QUESTION, LONG_LATENTS = 64, 24


def measure_scaling(base: Workload, doublings: int, repeats: int, axes: Sequence[str] = tuple(AXES)) -> dict[str, Any]:
    """One training step at every point.

    Returns:
        Per axis the `values` doubled, and for `seconds` and `bytes` (of the step alone): `measured` and `formula` at each value, the
        `exponent` and `formula_exponent` of a power law through them, and their `growth` and `formula_growth` from first to last.
    """
    memory: dict[Workload, float] = {}
    found = {}
    for axis in axes:
        start = getattr(base, AXES[axis])
        values = [start * 2**number for number in range(doublings + 1)]
        points = [replace(base, **{AXES[axis]: value}) for value in values]
        for point in points:
            if point not in memory:
                memory[point] = peak_memory(prepare_step, point, "ours", device=base.device).above_rest
        runs = {str(value): prepare_step(point, "ours") for value, point in zip(values, points, strict=True)}
        seconds = [median(taken) for taken in alternate(runs, repeats, base.device).values()]
        found[axis] = {
            "values": values,
            "seconds": _growth(values, seconds, [float(step_flops(point, shape_of(point))) for point in points]),
            "bytes": _growth(values, [float(memory[point]) for point in points], [float(entries(point)) for point in points]),
        }
    return found


def entries(workload: Workload) -> int:
    """Tokens that run through a layer, over all passes, rows and layers: what a step keeps for its backward pass, but for a factor."""
    return workload.batch * shape_of(workload).layers * sum(tokens for tokens, _ in passes(workload))


def exponent(values: Sequence[int], measured: Sequence[float]) -> float:
    """The power of the power law that fits best (least squares of the logarithms)."""
    x, y = [math.log(value) for value in values], [math.log(value) for value in measured]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / sum((a - middle_x) ** 2 for a in x)


def measure_long_trace(cot: int, shape: str, threads: int = 0) -> dict[str, Any]:
    """A trace of `cot` tokens compressed to 24 entries: by `compress` alone, on a cache of SmolLM2-135M's shape, and in a whole
    training step of a small model."""
    step = Workload(shape=shape, batch=1, question=LONG_QUESTION, cot=cot, latents=LONG_LATENTS, threads=threads)
    return {
        "cot": cot,
        "kept": LONG_LATENTS,
        "compress": asdict(peak_memory(prepare_compress, cot, LONG_LATENTS)),
        "step": {"shape": shape, **asdict(peak_memory(prepare_step, step, "ours"))},
    }


def prepare_compress(cot: int, kept: int) -> Run:
    """`compress` on random keys and values of 30 layers, 3 heads of size 64, in float32, ready to run."""
    import torch

    from kava.eviction import Trace, compress

    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(30, 1, 3, cot, 64, generator=generator) for _ in range(2))
    importance = torch.rand(30, 1, 3, cot, generator=generator)
    trace = Trace(keys, values, importance, torch.ones(1, cot, dtype=torch.bool), torch.zeros(1, dtype=torch.long))
    return partial(compress, trace, "rkv", kept, 0.1)


def _growth(values: list[int], measured: Sequence[float], formula: list[float]) -> dict[str, Any]:
    return {
        "measured": measured,
        "formula": formula,
        "exponent": exponent(values, measured),
        "formula_exponent": exponent(values, formula),
        "growth": measured[-1] / measured[0],
        "formula_growth": formula[-1] / formula[0],
    }
