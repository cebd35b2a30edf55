"""The training step against its two reference forms (`kava.tools.bench.naive`): seconds, peak memory, and proof of equal work."""

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from kava.tools.bench.flops import utilisation
from kava.tools.bench.timing import Memory, Run, alternate, median_ratio, peak_memory
from kava.tools.bench.workload import HALF, Workload, build_workload, random_batch

if TYPE_CHECKING:
    from kava.data.collate import Batch
    from kava.losses.total import LossTerms
    from kava.model.kava import KavaModel

    Losses = Callable[[KavaModel, Batch], LossTerms]

VARIANTS = ("ours", "naive", "pccot")


def variants_of(workload: Workload) -> tuple[str, ...]:
    """Names of what is measured of a workload on this machine."""
    return (*VARIANTS, HALF) if workload.dtype == "float32" and _multiplies_bfloat16(workload.device) else VARIANTS


def measure_step(workload: Workload, repeats: int) -> dict[str, Any]:
    """Forward and backward pass of one batch, each way; the optimizer's step is the same for all and left out.

    Returns:
        `variants`: per variant the loss, its seconds, their median and memory in bytes; `speedup` and `memory_ratio` of ours
        over each other; `bf16_speedup`: of ours in bfloat16 over each other, empty where that was not measured;
        `loss_difference`: largest relative difference of a loss term from ours; `utilisation`: see `flops`.
    """
    names = variants_of(workload)
    memory = {name: peak_memory(prepare_step, workload, name, device=workload.device) for name in names}
    runs = _prepare(workload, names)
    terms = {name: _values(run()) for name, run in runs.items()}
    seconds = alternate(runs, repeats, workload.device)
    others = [name for name in names if name != "ours"]
    return {
        "variants": {name: _entry(terms[name], seconds[name], memory[name]) for name in names},
        "speedup": {name: median_ratio(seconds[name], seconds["ours"]) for name in others},
        "bf16_speedup": {name: median_ratio(seconds[name], seconds[HALF]) for name in VARIANTS if HALF in names},
        "memory_ratio": {name: memory[name].peak / memory["ours"].peak for name in others},
        "memory_above_rest_ratio": {name: memory[name].above_rest / max(memory["ours"].above_rest, 1) for name in others},
        "loss_difference": {name: _difference(terms[name], terms["ours"]) for name in others},
        "utilisation": utilisation(workload, statistics.median(seconds["ours"])),
    }


def prepare_step(workload: Workload, variant: str) -> Run:
    """One training step of a variant, ready to run."""
    return _prepare(workload, (variant,))[variant]


def _prepare(workload: Workload, variants: tuple[str, ...]) -> dict[str, Run]:
    """The variants' steps, on one model per dtype."""
    models: dict[str, tuple[KavaModel, Batch]] = {}
    for dtype in {_dtype(workload, name) for name in variants}:
        model, builder = build_workload(replace(workload, dtype=dtype))
        models[dtype] = model, random_batch(workload, model, builder)
    return {name: partial(_step, *models[_dtype(workload, name)], _losses(name)) for name in variants}


def _dtype(workload: Workload, variant: str) -> str:
    return "bfloat16" if variant == HALF else workload.dtype


def _multiplies_bfloat16(device: str) -> bool:
    """Whether matrix products in bfloat16 are the machine's own."""
    import torch

    if device != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _losses(variant: str) -> "Losses":
    from kava.tools.bench.naive import naive_losses, pccot_losses

    if variant in ("ours", HALF):
        return lambda model, batch: model(batch)["terms"]
    return {"naive": naive_losses, "pccot": pccot_losses}[variant]


def _step(model: "KavaModel", batch: "Batch", losses: "Losses") -> "LossTerms":
    """As training runs it: under autocast where the base is stored in half precision."""
    import torch

    from kava.losses.total import combine

    dtype, device = model.backbone.causal_lm.dtype, model.backbone.causal_lm.device.type
    model.zero_grad(set_to_none=True)
    with torch.autocast(device, dtype) if dtype != torch.float32 else nullcontext():
        terms = losses(model, batch)
    combine(terms, model.settings.weights).mean().backward()
    return terms


def _values(terms: "LossTerms") -> dict[str, float]:
    return {name: float(value.detach().mean()) for name, value in terms.items()}


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
