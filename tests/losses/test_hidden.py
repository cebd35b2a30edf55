"""The distillation of hidden states (CODI) against the naive float64 loop, and where its gradient goes."""

import statistics

import pytest
import torch

from kava.losses import DISTANCES, codi_loss
from oracles import naive

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layerwise_std", [True, False])
@pytest.mark.parametrize("name", DISTANCES)
def test_codi_equals_naive(name: str, layerwise_std: bool, dtype: torch.dtype) -> None:
    scale = torch.tensor([0.3, 1.0, 5.0])[:, None, None]
    teacher, student = (torch.randn(3, 4, 6) * scale).to(dtype), (torch.randn(3, 4, 6) * scale).to(dtype)
    loss = codi_loss(teacher, student, name, layerwise_std)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    expected = [naive.codi_loss(teacher[:, b].double().tolist(), student[:, b].double().tolist(), name, layerwise_std) for b in range(4)]
    torch.testing.assert_close(loss.double(), torch.tensor(expected, dtype=torch.float64), rtol=2e-6, atol=1e-7)
    for b in range(4):
        torch.testing.assert_close(
            codi_loss(teacher[:, b : b + 1], student[:, b : b + 1], name, layerwise_std)[0], loss[b], rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("levels", ["layers", "embeddings too"])
def test_codi_is_an_exact_multiple_of_the_peers_forms(levels: str) -> None:
    """PCCoT divides by the unbiased deviation; CODI does too, and averages over the embeddings, where student and teacher agree."""
    teacher, student = torch.randn(3, 1, 64, dtype=torch.float64), torch.randn(3, 1, 64, dtype=torch.float64)
    if levels == "embeddings too":
        embedding = torch.randn(1, 1, 64, dtype=torch.float64)
        teacher, student = torch.cat([embedding, teacher]), torch.cat([embedding, student])
    peers = [
        sum(naive.distance("smooth_l1", float(t - s)) for t, s in zip(taught, own, strict=True)) / 64 / statistics.stdev(taught.tolist())
        for taught, own in zip(teacher[:, 0], student[:, 0], strict=True)
    ]
    ours = codi_loss(teacher[-3:], student[-3:], "smooth_l1", True)
    assert float(ours) == pytest.approx(sum(peers) / len(peers) * len(peers) / 3 * (64 / 63) ** 0.5, rel=1e-12)


def test_codi_divides_the_distance_not_the_residual() -> None:
    """Teacher (1, -1) x 4: deviation 4; residual 2 everywhere: smooth L1 1.5, over 4."""
    teacher = torch.tensor([4.0, -4.0]).view(1, 1, 2)
    assert codi_loss(teacher, teacher + 2, "smooth_l1", True).tolist() == [1.5 / 4]


@pytest.mark.parametrize("layerwise_std", [True, False])
@pytest.mark.parametrize("name", DISTANCES)
def test_codi_moves_the_student_only(name: str, layerwise_std: bool) -> None:
    teacher, student = torch.randn(2, 3, 4).requires_grad_(), torch.randn(2, 3, 4).requires_grad_()
    codi_loss(teacher, student, name, layerwise_std).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert (student.grad != 0).all()


@pytest.mark.parametrize("layerwise_std", [True, False])
@pytest.mark.parametrize("name", DISTANCES)
def test_gradients_equal_finite_differences(name: str, layerwise_std: bool) -> None:
    teacher, student = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: codi_loss(teacher, s, name, layerwise_std), (student,))


def test_constant_teacher_gives_a_finite_loss() -> None:
    flat = torch.ones(2, 1, 3)
    assert codi_loss(flat, flat + 1, "smooth_l1", True).isfinite().all()


def test_the_loss_stays_float32_under_autocast() -> None:
    teacher, student = torch.randn(2, 2, 3, 4)
    plain = codi_loss(teacher, student, "smooth_l1", True)
    with torch.autocast("cpu", torch.bfloat16):
        cast = codi_loss(teacher, student, "smooth_l1", True)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)


def test_the_loss_never_waits_for_the_device() -> None:
    """The meta device cannot be read, so a loss that needed a number on the host would fail."""
    teacher, student = torch.randn(2, 2, 3, 4, device="meta")
    loss = codi_loss(teacher, student, "l1", True)
    assert (loss.shape, loss.device.type) == ((3,), "meta")
