"""Cross-entropy in slices: the same losses and gradients as from all logits at once."""

import os
from importlib.util import find_spec

import pytest
import torch
from torch.nn.functional import cross_entropy

from kava.losses.sliced import sliced_token_losses

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS_LIGER = find_spec("liger_kernel") is not None and (DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")


@pytest.mark.parametrize("slice_length", [1, 4, 100])
@pytest.mark.parametrize("trained", [0, 3])
def test_losses_and_gradients_are_those_of_all_logits_at_once(slice_length: int, trained: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight, rows = draw(10, 8).requires_grad_(), draw(20, 8), draw(trained, 8).requires_grad_()
    ids = torch.arange(17, 17 + trained)
    labels = torch.randint(0, 20, (10,), generator=generator)
    labels[0], labels[1] = 18, -100
    upstream = torch.rand(10, generator=generator, dtype=torch.float64)
    expected = cross_entropy((hidden @ weight.T).index_copy(1, ids, hidden @ rows.T), labels, reduction="none")
    found = sliced_token_losses(hidden, weight, labels, rows, ids, slice_length)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    inputs = [hidden, rows] if trained else [hidden]
    for ours, theirs in zip(
        torch.autograd.grad((found * upstream).sum(), inputs), torch.autograd.grad((expected * upstream).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_a_new_token_far_above_the_others_leaves_no_trace_where_the_label_is_ignored() -> None:
    hidden, weight, rows = torch.ones(2, 1).requires_grad_(), torch.zeros(4, 1), torch.full((1, 1), 100.0).requires_grad_()
    losses = sliced_token_losses(hidden, weight, torch.tensor([3, -100]), rows, torch.tensor([3]))
    to_hidden, to_rows = torch.autograd.grad(losses.sum(), [hidden, rows])
    assert to_hidden.isfinite().all()
    assert to_hidden[1] == 0
    assert to_rows.isfinite().all()


@pytest.mark.skipif(not RUNS_LIGER, reason="needs liger-kernel, and a GPU or TRITON_INTERPRET=1")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_softmax_of_liger_kernel_gives_the_same(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    hidden, weight, rows = draw(10, 8).requires_grad_(), draw(20, 8), draw(3, 8).requires_grad_()
    labels, upstream = torch.randint(0, 17, (10,), generator=generator).to(DEVICE), torch.rand(10, generator=generator).to(DEVICE)
    labels[0], labels[1] = 18, -100
    ids = torch.arange(17, 20, device=DEVICE)
    plain, fused = (sliced_token_losses(hidden, weight, labels, rows, ids, 4, liger) for liger in (False, True))
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-5)
    assert fused[1] == 0
    gradients = [torch.autograd.grad((losses * upstream).sum(), [hidden, rows]) for losses in (fused, plain)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 if dtype == torch.float32 else 2e-2)
