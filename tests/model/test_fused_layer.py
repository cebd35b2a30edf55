"""A decoder layer in few operations: when it takes part."""

import pytest
import torch

from helpers.tiny import tiny_model
from kava.model.cpu_kernels import fuse_on_cpu
from kava.runtime import cpu_matmul


@pytest.fixture(autouse=True)
def _however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_matmul, "MIN_MULTIPLICATIONS", 0)


def test_few_rows_and_other_types_take_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    layers = fuse_on_cpu(model)
    hidden = model.backbone.embed(torch.zeros(1, 4, dtype=torch.long))
    monkeypatch.setattr(cpu_matmul, "MIN_MULTIPLICATIONS", 2**20)
    assert not layers[0]._takes(hidden)
    wide = hidden.repeat(8, 1, 1)
    assert layers[0]._takes(wide)
    with torch.autocast("cpu", torch.bfloat16):
        assert not layers[0]._takes(wide)
    assert not layers[0]._takes(wide.double())
    model.backbone.causal_lm.config._attn_implementation = "kava_eager"
    assert not layers[0]._takes(wide)
