"""The training step against its two reference forms (`kava.bench.naive`): seconds, peak memory, and proof of equal work."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from kava.bench.flops import utilisation
from kava.bench.timing import Memory, Run, alternate, median_ratio, peak_memory
from kava.bench.workload import Workload, build_workload, random_batch

if TYPE_CHECKING:
    from kava.data.collate import Batch
    from kava.losses.total import LossTerms
    from kava.model.kava import KavaModel

    Losses = Callable[[KavaModel, Batch], LossTerms]

VARIANTS = ("ours", "naive", "pccot")


def measure_step(workload: Workload, repeats: int) -> dict[str, Any]:
    """Forward and backward pass of one batch, each way; the optimizer's step is the same for all and left out.

    Returns:
        `variants`: per variant the loss, its seconds, their median and memory in bytes; `speedup` and `memory_ratio` of ours
        over each other; `loss_difference`: largest relative difference of a loss term from ours; `utilisation`: see `flops`.
    """
    memory = {name: peak_memory(prepare_step, workload, name, device=workload.device) for name in VARIANTS}
    model, builder = build_workload(workload)
    batch = random_batch(workload, model, builder)
    terms = {name: _values(_losses(name)(model, batch)) for name in VARIANTS}
    seconds = alternate({name: partial(_step, model, batch, _losses(name)) for name in VARIANTS}, repeats, workload.device)
    others = [name for name in VARIANTS if name != "ours"]
    return {
        "variants": {name: _entry(terms[name], seconds[name], memory[name]) for name in VARIANTS},
        "speedup": {name: median_ratio(seconds[name], seconds["ours"]) for name in others},
        "memory_ratio": {name: memory[name].peak / memory["ours"].peak for name in others},
        "memory_above_rest_ratio": {name: memory[name].above_rest / max(memory["ours"].above_rest, 1) for name in others},
        "loss_difference": {name: _difference(terms[name], terms["ours"]) for name in others},
        "utilisation": utilisation(workload, statistics.median(seconds["ours"])),
    }


def prepare_step(workload: Workload, variant: str) -> Run:
    """One training step of a variant, ready to run."""
    model, builder = build_workload(workload)
    return partial(_step, model, random_batch(workload, model, builder), _losses(variant))


def _losses(variant: str) -> "Losses":
    from kava.bench.naive import naive_losses, pccot_losses

    if variant == "ours":
        return lambda model, batch: model(batch)["terms"]
    return {"naive": naive_losses, "pccot": pccot_losses}[variant]


def _step(model: "KavaModel", batch: "Batch", losses: "Losses") -> None:
    from kava.losses.total import combine

    model.zero_grad(set_to_none=True)
    combine(losses(model, batch), model.settings.alpha1, model.settings.alpha2).mean().backward()


def _values(terms: "LossTerms") -> dict[str, float]:
    return {name: float(value.detach().mean()) for name, value in vars(terms).items() if value is not None}


def _difference(terms: dict[str, float], ours: dict[str, float]) -> float:
    assert terms.keys() == ours.keys()
    return max(abs(terms[name] - ours[name]) / abs(ours[name]) for name in ours)


def _entry(terms: dict[str, float], seconds: list[float], memory: Memory) -> dict[str, Any]:
    return {
        "losses": terms,
        "median_seconds": statistics.median(seconds),
        "seconds": seconds,
        "peak_bytes": memory.peak,
        "rest_bytes": memory.rest,
    }
