"""Training-step benchmarks: against two reference implementations (`kava.tools.bench.naive`), and operation counts."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from kava.data.collate import Batch
from kava.losses.total import LossTerms, combine
from kava.model import layer_kernels
from kava.model.adapted_layer import fuse_adapted_layers
from kava.model.kava import KavaModel
from kava.runtime.device import as_on_gpu
from kava.tools.bench.flops import shape_of, utilisation
from kava.tools.bench.naive import naive_losses, pccot_losses
from kava.tools.bench.record import Found
from kava.tools.bench.timing import MIB, Run, alternate, peak_memory
from kava.tools.bench.workload import Workload, build_workload, random_batch

Losses = Callable[[KavaModel, Batch], LossTerms]

VARIANTS = ("ours", "naive", "pccot")
# Our step in bfloat16 as well, if float32 is requested and the machine supports bfloat16 matrix multiplication.
HALF = "ours_bf16"
# Relative tolerance of each loss term: rounding error may swap two trace entries of nearly equal score.
LOSS_TOLERANCE, ROUNDED_TOLERANCE = 1e-3, 5e-2
# Operations that only create views: they cost host time but no device time.
_VIEWS = """
    view _unsafe_view t transpose permute expand slice split split_with_sizes unsqueeze squeeze select detach alias as_strided reshape
    unbind narrow lift_fresh
"""
VIEWS = frozenset(_VIEWS.split())


def variants_of(workload: Workload) -> tuple[str, ...]:
    """Return the names of the variants that are measured for a workload on this machine."""
    return (*VARIANTS, HALF) if workload.dtype == "float32" and _multiplies_bfloat16(workload.device) else VARIANTS


def measure_step(workload: Workload, repeats: int) -> Found:
    """Measure forward and backward pass of one batch with each variant; the optimizer step, equal for all, is left out."""
    names = variants_of(workload)
    memory = {name: peak_memory(prepare_step, workload, name, device=workload.device) for name in names}
    runs = _prepare(workload, names)
    losses = {name: _values(run()) for name, run in runs.items()}
    taken = alternate(runs, repeats, workload.device)
    seconds = {name: median(taken[name]) for name in names}
    ours, rows, problems = memory["ours"], [], []
    for name in names:
        # Not Python's max, which passes over NaN.
        off = float(np.max([abs(losses[name][term] - value) / abs(value) for term, value in losses["ours"].items()]))
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
    """Return a function that runs one training step of a variant."""
    return _prepare(workload, (variant,))[variant]


def _prepare(workload: Workload, variants: tuple[str, ...]) -> dict[str, Run]:
    """Return a function per variant that runs its step; variants of the same dtype share a model."""
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
    """Return whether the machine has native bfloat16 matrix multiplication."""
    if device != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _losses(variant: str) -> Losses:
    return {"naive": naive_losses, "pccot": pccot_losses}.get(variant, lambda model, batch: model(batch)["terms"])


def _step(model: KavaModel, batch: Batch, losses: Losses) -> LossTerms:
    """Run forward and backward pass as in training: under autocast if the base model is stored in half precision."""
    dtype, device = model.backbone.causal_lm.dtype, model.backbone.causal_lm.device.type
    model.zero_grad(set_to_none=True)
    with model.backbone.adapters.sum_gradients():
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

    def kernels_as_one(self) -> AbstractContextManager[None]:
        """Count each call of a kernel as one operation: its plain form, which runs on a CPU, takes many."""
        plain = {name: getattr(layer_kernels, name) for name in layer_kernels.outputs_only()}

        def one(name: str, *arguments: Any) -> Any:
            self.counted[name] += 1
            # Plain forms may call each other.
            with _disable_current_modes(), layer_kernels.replaced(plain):
                return plain[name](*arguments)

        return layer_kernels.replaced({name: partial(one, name) for name in plain})


def count_calls(workload: Workload) -> Found:
    """Count the operations of one step, separately for forward and backward pass: the host launches each one, and the GPU waits for it.

    Counted on a CPU with bf16 weights under bf16 autocast, as on a GPU, on a narrow model with the number of layers of the shape: the
    width does not change the counts. A kernel of an adapted layer counts as one operation (`kava.model.layer_kernels`).
    """
    narrow = replace(
        workload, shape="tiny", layers=shape_of(workload).layers, batch=4, lora_r=min(workload.lora_r, 4),
        dtype="bfloat16", device="cpu", dropout=0.1,
    )  # fmt: skip
    trained = build_workload(narrow)
    model, batch = trained.model.train(), random_batch(narrow, trained)
    fuse_adapted_layers(model.backbone)
    with as_on_gpu(), model.backbone.adapters.sum_gradients():
        # Only the second round counts: the first one creates what later ones reuse, such as cast weights and masks.
        for _ in range(2):
            forward, backward = _Counting(), _Counting()
            with forward, forward.kernels_as_one(), torch.autocast("cpu", torch.bfloat16):
                loss = model(batch)["loss"].mean()
            with backward, backward.kernels_as_one():
                loss.backward()
    rows = []
    for name, mode in (("forward", forward), ("backward", backward)):
        computing = Counter({kind: count for kind, count in mode.counted.items() if kind not in VIEWS})
        kinds = computing.most_common()
        most = ", ".join(f"{kind} {count}" for kind, count in kinds[:6])
        totals = {"all": mode.counted.total(), "without views": computing.total()}
        rows.append({"pass": name, **totals, "most of them": most, "kinds": [list(kind) for kind in kinds]})
    return Found({f"operations of a training step, {workload.shape}": rows})
