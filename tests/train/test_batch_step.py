"""Forward and backward pass of a micro-batch: what they add to the gradients, and that they never wait for the device."""

from math import inf
from typing import Any

import pytest
import torch
from torch.amp import GradScaler
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.tiny import assert_close, gradients, lora_config, make_batch, make_examples, tiny_model
from kava.methods import EVICTIONS, METHODS
from kava.model.kava import KavaModel
from kava.train.batch_step import BatchStep, autocast, can_be_captured, leaves_some_unused

aten = torch.ops.aten
# Each of them copies a value to the host, or makes a shape out of values.
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.unique_consecutive.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.item.default,
}


class Refuse(TorchDispatchMode):
    """Fails on an operation of `WAITS`, on indexing with a boolean tensor, and on a copy of values between host and device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in WAITS, f"{func} waits for the device"
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            assert all(index is None or index.dtype not in (torch.bool, torch.uint8) for index in args[1]), f"{func} with a boolean index"
        return func(*args, **kwargs or {})


def step_of(model: KavaModel, precision: str = "no") -> BatchStep:
    return BatchStep(model, precision, GradScaler("cpu", enabled=False))


def test_the_gradient_is_that_of_the_sum_over_the_examples_of_a_step() -> None:
    """Micro-batches add up; one that does not count (infinitely many examples) leaves the gradient as it is."""
    model = tiny_model(lora=True)
    batch = make_batch(model, make_examples())
    expected = gradients(model, model(batch)["loss"].sum() / 8)
    model.zero_grad()
    step = step_of(model)
    losses = step(batch, 8.0, last=False)
    step(batch, inf)
    assert losses.keys() == {"loss", *model(batch)["terms"]}
    assert not any(value.requires_grad for value in losses.values())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert_close(parameter.grad, expected[name], what=name)


def test_the_scaler_multiplies_the_gradient_and_not_the_losses() -> None:
    model = tiny_model(lora=True)
    batch = make_batch(model, make_examples())
    expected = gradients(model, model(batch)["loss"].sum())
    model.zero_grad()
    losses = BatchStep(model, "no", GradScaler("cpu", init_scale=4.0))(batch, 1.0)
    assert_close(losses["loss"], model(batch)["loss"].detach())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert_close(parameter.grad, 4 * expected[name], what=name)


def test_what_waits_compiles_or_scales_its_loss_is_not_captured() -> None:
    model, scaler = tiny_model(lora=True), GradScaler("cpu", enabled=False)
    assert can_be_captured(model.backbone, scaler)
    assert not can_be_captured(None, scaler)
    assert not can_be_captured(model.backbone, GradScaler("cpu", init_scale=4.0))
    assert not can_be_captured(tiny_model("dynamic", lora=True).backbone, scaler)
    model.backbone.compile_passes()
    assert not can_be_captured(model.backbone, scaler)


def test_on_a_cpu_no_graph_is_captured() -> None:
    step = BatchStep(tiny_model(lora=True), "no", GradScaler("cpu", enabled=False), graphs=True)
    assert step.captured is None
    step.release()


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_computes_in_what_the_setting_names(precision: str, dtype: torch.dtype) -> None:
    with autocast(precision, "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_parameters_without_a_gradient_are_expected(method: str, tied: bool) -> None:
    """DDP waits for every parameter's gradient unless it is told that some may have none."""
    model = tiny_model("llama", method=method, lora=True, tied=tied)
    model(make_batch(model, make_examples()))["loss"].mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert not without or leaves_some_unused(METHODS[method], lora_config(method=method)), without


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("method", METHODS)
def test_a_training_step_never_waits(method: str, attn: str) -> None:
    model = tiny_model(method=method, lora=True, attn=attn).train()
    batch = make_batch(model, make_examples(), stage={"icot": 1, "coconut": 2}.get(method, 0))
    step = step_of(model, "bf16")
    with Refuse():
        losses = step(batch, float(len(batch)))
    assert losses["loss"].isfinite().all()


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_no_eviction_waits(eviction: str) -> None:
    model = tiny_model(eviction=eviction, kv_rope="pre").train()
    with Refuse():
        model(make_batch(model, make_examples()))["loss"].mean().backward()


@pytest.mark.parametrize(
    "wait", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x.unique(), lambda x: x[x > 0].sum()]
)
def test_what_waits_is_noticed(wait: Any) -> None:
    with pytest.raises(AssertionError, match=r"waits for the device|boolean index"), Refuse():
        wait(torch.randn(5))
