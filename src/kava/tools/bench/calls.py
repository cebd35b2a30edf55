"""How many operations a training step asks for: what the host spends its time on, and what a GPU waits for where a step is not recorded.

Counted on a CPU, on a narrow model with the layers of the shape: width changes no count. What a GPU computes by fused kernels
(`kava.model.fused_kernels`) is counted as the operations that it replaces.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kava.cache.short_attention import sdpa_alone
from kava.tools.bench.workload import SHAPES, Workload, build_workload, random_batch

# Operations that make no new tensor: they cost the host time, and the device none.
_VIEWS = """
    view _unsafe_view t transpose permute expand slice split split_with_sizes unsqueeze squeeze select detach alias as_strided reshape
    unbind narrow lift_fresh
"""
VIEWS = frozenset(_VIEWS.split())
SHOWN = 12


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.counted[function.overloadpacket.__name__] += 1
        return function(*arguments, **(options or {}))


def count_calls(workload: Workload) -> dict[str, dict[str, Any]]:
    """Operations of one step, forward and backward pass apart, under bf16 autocast on bf16 weights, as on a GPU.

    Returns:
        For `forward` and `backward`: `calls`, all of them; `without_views`; `kinds`, the most frequent that are no views.
    """
    layers = workload.layers or SHAPES[workload.shape].layers
    narrow = replace(
        workload, shape="tiny", layers=layers, batch=4, lora_r=min(workload.lora_r, 4), dtype="bfloat16", device="cpu", dropout=0.1
    )
    model, builder = build_workload(narrow)
    model.train()
    batch = random_batch(narrow, model, builder)
    forward, backward = _Counting(), _Counting()
    with sdpa_alone():
        for modes in (None, (forward, backward)):
            # The first round makes what later ones find: casts of weights, masks.
            first, second = modes or (_Counting(), _Counting())
            with first, torch.autocast("cpu", torch.bfloat16):
                loss = model(batch)["loss"].mean()
            with second:
                loss.backward()
    return {"forward": _entry(forward.counted), "backward": _entry(backward.counted)}


def _entry(counted: Counter[str]) -> dict[str, Any]:
    computing = Counter({name: count for name, count in counted.items() if name not in VIEWS})
    return {"calls": counted.total(), "without_views": computing.total(), "kinds": dict(computing.most_common(SHOWN))}
