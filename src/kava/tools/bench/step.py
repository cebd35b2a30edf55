"""The training step: against its two reference forms (`kava.tools.bench.naive`), and the operations that it asks for."""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kava.cache.short_attention import sdpa_alone
from kava.data.collate import Batch
from kava.losses.total import LossTerms, combine
from kava.model.kava import KavaModel
from kava.tools.bench.flops import utilisation
from kava.tools.bench.naive import naive_losses, pccot_losses
from kava.tools.bench.record import MIB, Found
from kava.tools.bench.timing import Run, alternate, peak_memory
from kava.tools.bench.workload import SHAPES, Workload, build_workload, random_batch

Losses = Callable[[KavaModel, Batch], LossTerms]

VARIANTS = ("ours", "naive", "pccot")
# Ours once more in bfloat16, where float32 is asked for and the machine multiplies bfloat16.
HALF = "ours_bf16"
# Relative, of each loss term: rounding may exchange two trace entries of equal score.
LOSS_TOLERANCE, ROUNDED_TOLERANCE = 1e-3, 5e-2
# Operations that make no new tensor: they cost the host time, and the device none.
_VIEWS = """
    view _unsafe_view t transpose permute expand slice split split_with_sizes unsqueeze squeeze select detach alias as_strided reshape
    unbind narrow lift_fresh
"""
VIEWS = frozenset(_VIEWS.split())


def variants_of(workload: Workload) -> tuple[str, ...]:
    """Names of what is measured of a workload on this machine."""
    return (*VARIANTS, HALF) if workload.dtype == "float32" and _multiplies_bfloat16(workload.device) else VARIANTS


def measure_step(workload: Workload, repeats: int) -> Found:
    """Forward and backward pass of one batch, each way; the optimizer's step is the same for all and left out."""
    names = variants_of(workload)
    memory = {name: peak_memory(prepare_step, workload, name, device=workload.device) for name in names}
    runs = _prepare(workload, names)
    losses = {name: _values(run()) for name, run in runs.items()}
    taken = alternate(runs, repeats, workload.device)
    seconds = {name: median(taken[name]) for name in names}
    ours, rows, problems = memory["ours"], [], []
    for name in names:
        off = max(abs(losses[name][term] - value) / abs(value) for term, value in losses["ours"].items())
        allowed = LOSS_TOLERANCE if workload.dtype == "float32" and name != HALF else ROUNDED_TOLERANCE
        if not off <= allowed:
            problems.append(f"NOT the same work: a loss of {name} is off by {off:.1e}, allowed {allowed:.0e}")
        rows.append({
            "variant": name, "seconds": seconds[name], "times ours": seconds[name] / seconds["ours"],
            "peak MiB": memory[name].peak / MIB, "times ours (peak)": memory[name].peak / ours.peak,
            "step alone MiB": memory[name].above_rest / MIB, "loss off by": off, "all seconds": taken[name],
        })  # fmt: skip
    ratios = {f"step.speedup_over_{name}": seconds[name] / seconds["ours"] for name in VARIANTS[1:]}
    ratios |= {f"step.bf16_speedup_over_{name}": seconds[name] / seconds[HALF] for name in VARIANTS if HALF in names}
    ratios |= {f"step.memory_of_{name}": memory[name].peak / ours.peak for name in VARIANTS[1:]}
    title = "training step (forward and backward)"
    return Found({title: rows, "utilisation of ours": [utilisation(workload, seconds["ours"])]}, ratios, problems)


def prepare_step(workload: Workload, variant: str) -> Run:
    """One training step of a variant, ready to run."""
    return _prepare(workload, (variant,))[variant]


def _prepare(workload: Workload, variants: tuple[str, ...]) -> dict[str, Run]:
    """The variants' steps, on one model per dtype."""
    models: dict[str, tuple[KavaModel, Batch]] = {}
    runs: dict[str, Run] = {}
    for name in variants:
        dtype = "bfloat16" if name == HALF else workload.dtype
        if dtype not in models:
            trained = build_workload(replace(workload, dtype=dtype))
            models[dtype] = trained.model, random_batch(workload, trained)
        runs[name] = partial(_step, *models[dtype], _losses(name))
    return runs


def _multiplies_bfloat16(device: str) -> bool:
    """Whether matrix products in bfloat16 are the machine's own."""
    if device != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _losses(variant: str) -> Losses:
    return {"naive": naive_losses, "pccot": pccot_losses}.get(variant, lambda model, batch: model(batch)["terms"])


def _step(model: KavaModel, batch: Batch, losses: Losses) -> LossTerms:
    """As training runs it: under autocast where the base is stored in half precision."""
    dtype, device = model.backbone.causal_lm.dtype, model.backbone.causal_lm.device.type
    model.zero_grad(set_to_none=True)
    with torch.autocast(device, dtype) if dtype != torch.float32 else nullcontext():
        terms = losses(model, batch)
    combine(terms, model.settings.weights).mean().backward()
    return terms


def _values(terms: LossTerms) -> dict[str, float]:
    return {name: float(value.detach().mean()) for name, value in terms.items()}


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.counted[function.overloadpacket.__name__] += 1
        return function(*arguments, **(options or {}))


def count_calls(workload: Workload) -> Found:
    """Operations of one step, forward and backward pass apart: what the host spends its time on, and what a GPU waits for.

    Counted on a CPU under bf16 autocast on bf16 weights, as on a GPU, on a narrow model with the layers of the shape: width changes no
    count. What a GPU computes by fused kernels (`kava.model.fused_kernels`) is counted as the operations that it replaces.
    """
    layers = workload.layers or SHAPES[workload.shape].layers
    narrow = replace(
        workload, shape="tiny", layers=layers, batch=4, lora_r=min(workload.lora_r, 4), dtype="bfloat16", device="cpu", dropout=0.1
    )
    trained = build_workload(narrow)
    model, batch = trained.model.train(), random_batch(narrow, trained)
    with sdpa_alone():
        # The first round makes what later ones find: casts of weights, masks.
        for _ in range(2):
            forward, backward = _Counting(), _Counting()
            with forward, torch.autocast("cpu", torch.bfloat16):
                loss = model(batch)["loss"].mean()
            with backward:
                loss.backward()
    rows = []
    for name, mode in (("forward", forward), ("backward", backward)):
        computing = Counter({kind: count for kind, count in mode.counted.items() if kind not in VIEWS})
        kinds = computing.most_common()
        most = ", ".join(f"{kind} {count}" for kind, count in kinds[:6])
        totals = {"all": mode.counted.total(), "without views": computing.total()}
        rows.append({"pass": name, **totals, "most of them": most, "kinds": [list(kind) for kind in kinds]})
    return Found({f"operations of a training step, {workload.shape}": rows})
