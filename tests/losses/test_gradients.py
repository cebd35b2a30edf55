"""Gradients flow where they must and nowhere else."""

import pytest
import torch

from kava.losses import DISTANCES, codi_loss, combine, kv_loss, token_cross_entropy

SLOT_MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def cache(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(2, 3, 2, 3, 4, dtype=dtype).requires_grad_() for _ in range(4)]


@pytest.mark.parametrize("layerwise_std", [True, False])
@pytest.mark.parametrize("name", DISTANCES)
def test_codi_moves_the_student_only(name: str, layerwise_std: bool) -> None:
    teacher, student = torch.randn(2, 3, 4).requires_grad_(), torch.randn(2, 3, 4).requires_grad_()
    codi_loss(teacher, student, name, layerwise_std).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert (student.grad != 0).all()


@pytest.mark.parametrize("garbage", [0.0, torch.nan, torch.inf])
@pytest.mark.parametrize("layerwise_std", [True, False])
@pytest.mark.parametrize("name", DISTANCES)
def test_kv_moves_the_students_filled_slots_only(name: str, layerwise_std: bool, garbage: float) -> None:
    filled = SLOT_MASK[None, :, None, :, None].expand(2, 3, 2, 3, 4)
    tensors = [x.detach().masked_fill(~filled, garbage).requires_grad_() for x in cache()]
    teacher_keys, teacher_values, student_keys, student_values = tensors
    loss = kv_loss(teacher_keys, teacher_values, student_keys, student_values, SLOT_MASK, name, layerwise_std)
    assert loss.isfinite().all()
    assert loss[2] == 0
    loss.sum().backward()
    assert teacher_keys.grad is None
    assert teacher_values.grad is None
    for student in (student_keys, student_values):
        assert student.grad is not None
        assert (student.grad[filled] != 0).all()
        assert not student.grad[~filled].any()


@pytest.mark.parametrize(("parts", "moved"), [("keys", 0), ("values", 1)])
def test_one_part_moves_only_its_own(parts: str, moved: int) -> None:
    tensors = cache()
    kv_loss(*tensors, SLOT_MASK, "smooth_l1", True, parts).sum().backward()
    grads = [tensors[2].grad, tensors[3].grad]
    assert grads[moved] is not None
    assert grads[moved].any()
    assert grads[1 - moved] is None


@pytest.mark.parametrize("layerwise_std", [True, False])
@pytest.mark.parametrize("name", DISTANCES)
def test_gradients_equal_finite_differences(name: str, layerwise_std: bool) -> None:
    keys, values, student_keys, student_values = cache(torch.float64)
    assert torch.autograd.gradcheck(
        lambda k, v: kv_loss(keys, values, k, v, SLOT_MASK, name, layerwise_std), (student_keys, student_values)
    )
    teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: codi_loss(teacher, s, name, layerwise_std), (student_keys[:, :, 0, 0],))


def test_cross_entropy_gradient_stays_in_its_example() -> None:
    logits = torch.randn(5, 6).requires_grad_()
    labels, example = torch.randint(0, 6, (5,)), torch.tensor([0, 1, 0, 1, 1])
    token_cross_entropy(logits, labels, example, 3)[1].backward()
    assert logits.grad is not None
    assert (logits.grad[[1, 3, 4]] != 0).all()
    assert not logits.grad[[0, 2]].any()
    expected = (logits.detach().softmax(-1) - torch.nn.functional.one_hot(labels, 6)) / 3
    torch.testing.assert_close(logits.grad[[1, 3, 4]], expected[[1, 3, 4]])


def test_gradients_come_back_in_the_students_dtype() -> None:
    keys, values, student_keys, student_values = cache(torch.bfloat16)
    kv_loss(keys, values, student_keys, student_values, SLOT_MASK, "smooth_l1", True).sum().backward()
    assert student_keys.grad is not None
    assert student_keys.grad.dtype == torch.bfloat16


def test_losses_stay_float32_under_autocast() -> None:
    tensors = cache()
    hidden = torch.randn(2, 2, 3, 4)
    plain = kv_loss(*tensors, SLOT_MASK, "smooth_l1", True), codi_loss(hidden[0], hidden[1], "smooth_l1", True)
    with torch.autocast("cpu", torch.bfloat16):
        cast = kv_loss(*tensors, SLOT_MASK, "smooth_l1", True), codi_loss(hidden[0], hidden[1], "smooth_l1", True)
    for a, b in zip(plain, cast, strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(a, b)


def test_combined_gradient_is_weighted() -> None:
    ce, kv = torch.rand(2).requires_grad_(), torch.rand(2).requires_grad_()
    combine({"student_ce": ce, "kv": kv}, {"student_ce": 1.0, "kv": 0.5}).sum().backward()
    assert ce.grad is not None
    assert ce.grad.tolist() == [1, 1]
    assert kv.grad is not None
    assert kv.grad.tolist() == [0.5, 0.5]


def test_losses_never_wait_for_the_device() -> None:
    """The meta device cannot be read, so a loss that needed a number on the host would fail."""
    tensors = [x.detach().to("meta") for x in cache()]
    labels = torch.zeros(5, dtype=torch.int64, device="meta")
    losses = (
        kv_loss(*tensors, SLOT_MASK.to("meta"), "smooth_l1", True),
        codi_loss(tensors[0][:, :, 0, 0], tensors[2][:, :, 0, 0], "l1", True),
        token_cross_entropy(torch.zeros(5, 6, device="meta"), labels, labels, 3),
    )
    assert [(loss.shape, loss.device.type) for loss in losses] == [((3,), "meta")] * 3
