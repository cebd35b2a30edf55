"""Cross-entropy per example against the naive float64 loop, and where its gradient goes."""

import pytest
import torch

from kava.losses import token_cross_entropy
from oracles import naive

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_token_cross_entropy_equals_naive(dtype: torch.dtype) -> None:
    logits = (torch.randn(9, 7) * 3).to(dtype)
    labels, example = torch.randint(0, 7, (9,)), torch.tensor([3, 0, 0, 1, 3, 3, 0, 1, 3])
    loss = token_cross_entropy(logits, labels, example, num_examples=5)
    expected = naive.token_cross_entropy(logits.double().tolist(), labels.tolist(), example.tolist(), 5)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss[2] == 0
    assert loss[4] == 0
    torch.testing.assert_close(loss.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def test_token_cross_entropy_of_equal_logits_is_log_v() -> None:
    loss = token_cross_entropy(torch.zeros(3, 8), torch.tensor([0, 5, 7]), torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(loss, torch.full((2,), 2.0794415))


def test_token_cross_entropy_without_tokens_is_zero() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert token_cross_entropy(torch.zeros(0, 8), none, none, 2).tolist() == [0, 0]


def test_cross_entropy_gradient_stays_in_its_example() -> None:
    logits = torch.randn(5, 6).requires_grad_()
    labels, example = torch.randint(0, 6, (5,)), torch.tensor([0, 1, 0, 1, 1])
    token_cross_entropy(logits, labels, example, 3)[1].backward()
    assert logits.grad is not None
    assert (logits.grad[[1, 3, 4]] != 0).all()
    assert not logits.grad[[0, 2]].any()
    expected = (logits.detach().softmax(-1) - torch.nn.functional.one_hot(labels, 6)) / 3
    torch.testing.assert_close(logits.grad[[1, 3, 4]], expected[[1, 3, 4]])


def test_half_precision_is_computed_in_float32() -> None:
    logits = torch.zeros(1, 1000, dtype=torch.bfloat16)
    torch.testing.assert_close(token_cross_entropy(logits, torch.tensor([0]), torch.tensor([0]), 1), torch.tensor([6.9077554]))


def test_the_loss_never_waits_for_the_device() -> None:
    """The meta device cannot be read, so a loss that needed a number on the host would fail."""
    labels = torch.zeros(5, dtype=torch.int64, device="meta")
    loss = token_cross_entropy(torch.zeros(5, 6, device="meta"), labels, labels, 3)
    assert (loss.shape, loss.device.type) == ((3,), "meta")
