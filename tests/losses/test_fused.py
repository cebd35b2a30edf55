"""Cross-entropy by liger-kernel equals the plain one, and is refused where it cannot run."""

import os
from importlib.util import find_spec

import pytest
import torch

from helpers.tiny import assert_close, gradients, make_batch, make_examples, tiny_model
from kava.errors import UserError
from kava.losses.fused import check_fused_available

HAS_LIGER = find_spec("liger_kernel") is not None
RUNS_LIGER = HAS_LIGER and (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.skipif(RUNS_LIGER, reason="liger-kernel can run here")
def test_fused_cross_entropy_without_its_package_or_a_gpu_is_refused() -> None:
    reason = (
        "needs a GPU, and this runs on the CPU" if HAS_LIGER else "needs the package liger-kernel.* pip install 'kava-latent\\[liger\\]'"
    )
    with pytest.raises(UserError, match=f"system.fused_cross_entropy {reason}"):
        check_fused_available("cpu")


@pytest.mark.skipif(not RUNS_LIGER, reason="needs liger-kernel, and a GPU or TRITON_INTERPRET=1")
@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("llama", True), ("gemma2", True)])
def test_fused_cross_entropy_gives_the_same_losses_and_gradients(kind: str, tied: bool) -> None:
    if kind == "gemma2" and DEVICE == "cpu":
        pytest.skip("Triton's interpreter has no tanh for softcapped logits")
    attn = "eager" if kind == "gemma2" else "sdpa"
    plain, fused = (tiny_model(kind, attn, lora=True, tied=tied).to(DEVICE) for _ in range(2))
    fused.backbone.fused = True
    batch = make_batch(plain, make_examples()).to(DEVICE)
    losses = [model(batch)["loss"] for model in (plain, fused)]
    assert_close(losses[1], losses[0], 1e-5)
    expected, actual = gradients(plain, losses[0].sum()), gradients(fused, losses[1].sum())
    for name, gradient in expected.items():
        assert_close(actual[name], gradient, 1e-4, name)
