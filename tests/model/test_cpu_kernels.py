"""Layers and maps in few operations on a CPU: the same losses and gradients, for any architecture; and which of them take part."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.checks import gradients
from helpers.tiny import ARCHITECTURES, EAGER_ONLY, assert_close, make_batch, make_examples, tiny_model
from kava.model.cpu_kernels import _always, fuse_on_cpu
from kava.model.fused_layer import FusedLayer
from kava.model.kava import KavaModel
from kava.runtime import cpu_matmul

LIKE_LLAMA = {"llama", "qwen2", "mistral"}


@pytest.fixture(autouse=True)
def _however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_matmul, "MIN_MULTIPLICATIONS", 0)


@pytest.fixture(params=[True, False], ids=["onednn", "mkl"])
def library(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("a torch without oneDNN")
    monkeypatch.setattr(cpu_matmul, "onednn_is_faster", lambda: request.param)


def step(model: KavaModel) -> tuple[dict[str, Any], dict[str, Any]]:
    output = model(make_batch(model, make_examples()))
    return output["terms"], gradients(model, output["loss"].mean())


def same(model: KavaModel, fused: KavaModel, layers: list[FusedLayer]) -> None:
    terms, expected = step(model)
    with _always(layers):
        found, actual = step(fused)
    for name, value in terms.items():
        assert_close(found[name], value, 1e-5, what=name)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert scale > 0
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        size = max(float(gradient.abs().max()), 1e-2 * scale)
        assert float((actual[name] - gradient).abs().max()) <= 2e-5 * size, name


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_weight_trained(kind: str) -> None:
    attn = "eager" if kind in EAGER_ONLY else "sdpa"
    fused = tiny_model(kind, attn)
    layers = fuse_on_cpu(fused)
    assert bool(layers) is (kind in LIKE_LLAMA)
    same(tiny_model(kind, attn), fused, layers)


def test_by_either_library(library: None) -> None:
    fused = tiny_model("qwen2")
    same(tiny_model("qwen2"), fused, fuse_on_cpu(fused))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_adapters(kind: str) -> None:
    """Frozen maps beside them are computed by groups; layers with adapters are left as they are."""
    fused = tiny_model(kind, lora=True)
    assert fuse_on_cpu(fused) == []
    same(tiny_model(kind, lora=True), fused, [])


def test_a_layer_that_only_looks_like_llamas() -> None:
    """Granite: the same parts, and another weight of what is added."""
    fused = tiny_model("llama")
    for layer in fused.backbone.decoder.layers:
        layer.forward = _halved(layer.forward)
    assert fuse_on_cpu(fused) == []


def test_a_dropout_of_a_layer_s_own_is_left_to_it() -> None:
    """Seed-OSS: Llama's parts, and a dropout that an evaluating pass does not show."""
    fused = tiny_model("llama")
    for layer in fused.backbone.decoder.layers:
        layer.self_attn.residual_dropout = 0.5
    assert fuse_on_cpu(fused) == []


def _halved(forward: Any) -> Any:
    def run(hidden: torch.Tensor, **options: Any) -> torch.Tensor:
        return hidden + 0.5 * (forward(hidden, **options) - hidden)

    return run


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.counted[function.overloadpacket.__name__] += 1
        return function(*arguments, **(options or {}))


def test_operations_of_a_step() -> None:
    """Forward and backward pass of three layers through five passes; each that is no view, with the losses' own and eviction's."""
    from kava.tools.bench.step import VIEWS

    counts = {}
    for fuse in (False, True):
        model = tiny_model("llama")
        layers = fuse_on_cpu(model) if fuse else []
        with _always(layers), Counting() as mode:
            step(model)
        counts[fuse] = sum(count for name, count in mode.counted.items() if name not in VIEWS)
    # 2,733 and 2,312 (2026-11-26).
    assert counts[True] < 0.86 * counts[False], counts
    assert counts[True] <= 2350, counts
