"""No step waits for the device: nothing in it depends on a value that the device computes."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.tiny import make_batch, make_examples, tiny_model
from kava.methods import EVICTIONS, METHODS

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


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("method", METHODS)
def test_a_training_step_never_waits(method: str, attn: str) -> None:
    model = tiny_model(method=method, lora=True, attn=attn).train()
    batch = make_batch(model, make_examples(), stage={"icot": 1, "coconut": 2}.get(method, 0))
    with Refuse(), torch.autocast("cpu", torch.bfloat16):
        loss = model(batch)["loss"].mean()
        loss.backward()
    assert loss.isfinite()


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
