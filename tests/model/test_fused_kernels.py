"""Fused kernels are for models on a GPU: elsewhere nothing changes, and what replaces a function computes the same."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from helpers.tiny import tiny_model
from kava.model.fused_kernels import _rms_norm, _RotateWhereItLies, fuse_kernels


def test_a_model_on_a_cpu_is_left_as_it_is() -> None:
    backbone = tiny_model("llama").backbone
    names = vars(sys.modules[type(backbone.causal_lm).__module__])
    before = dict(names)
    assert fuse_kernels(backbone) is False
    assert not backbone.liger_softmax
    assert names == before
    assert not any("forward" in vars(module) for module in backbone.causal_lm.modules() if "Norm" in type(module).__name__)


def test_the_rotary_embedding_of_tensors_on_a_cpu_is_the_plain_one() -> None:
    rotate = _RotateWhereItLies(lambda query: "fused", lambda query: "plain")
    assert rotate(torch.zeros(1)) == "plain"
    assert rotate(SimpleNamespace(is_cuda=True)) == "fused"


def test_a_norm_is_x_over_its_root_mean_square_times_the_weight() -> None:
    module: Any = nn.Module()
    module.weight, module.variance_epsilon = nn.Parameter(torch.rand(8), requires_grad=False), 1e-6
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * module.weight
    torch.testing.assert_close(_rms_norm(module, lambda x: torch.zeros(()), x), expected)


@pytest.mark.parametrize("change", ["a trained weight", "another dtype"])
def test_a_norm_that_is_trained_or_casts_stays_liger_s(change: str) -> None:
    module: Any = nn.Module()
    module.weight, module.variance_epsilon = nn.Parameter(torch.rand(8), requires_grad=change == "a trained weight"), 1e-6
    x = torch.randn(3, 8).to(torch.bfloat16 if change == "another dtype" else torch.float32)
    other = torch.zeros(())
    assert _rms_norm(module, lambda x: other, x) is other
