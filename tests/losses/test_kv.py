"""The distillation of keys and values against the naive float64 loop, and where its gradient goes."""

from typing import get_args

import pytest
import torch

from kava.config import LossConfig
from kava.losses import DISTANCES, kv_loss
from kava.losses.kv import Parts
from oracles import naive

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
SLOT_MASK = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4, [True, False, False, False]])
# Gradients: a batch of three, of which the last holds nothing.
LEAF_MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def cache(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Teacher keys, teacher values, student keys, student values [L=3, B=4, H=2, M=4, D=5], each on its own scale."""
    return [(torch.randn(3, 4, 2, 4, 5) * scale + scale / 3).to(dtype) for scale in (2.0, 0.5, 1.5, 0.7)]


def leaves(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Teacher keys, teacher values, student keys, student values [L=2, B=3, H=2, M=3, D=4], whose gradients are looked at."""
    return [torch.randn(2, 3, 2, 3, 4, dtype=dtype).requires_grad_() for _ in range(4)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", get_args(Parts))
@pytest.mark.parametrize("layerwise_std", [True, False])
@pytest.mark.parametrize("name", DISTANCES)
def test_kv_equals_naive(name: str, layerwise_std: bool, parts: Parts, dtype: torch.dtype) -> None:
    tensors = cache(dtype)
    loss = kv_loss(*tensors, SLOT_MASK, name, layerwise_std, parts)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    expected = []
    for b in range(4):
        filled = int(SLOT_MASK[b].sum())
        expected.append(naive.kv_loss(*(x[:, b, :, :filled].double().tolist() for x in tensors), name, layerwise_std, parts))
    assert loss[2] == 0
    torch.testing.assert_close(loss.double(), torch.tensor(expected, dtype=torch.float64), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("layerwise_std", [True, False])
def test_kv_of_a_batch_is_that_of_each_example_alone(layerwise_std: bool) -> None:
    tensors = cache()
    loss = kv_loss(*tensors, SLOT_MASK, "smooth_l1", layerwise_std)
    for b in range(4):
        single = kv_loss(*(x[:, b : b + 1] for x in tensors), SLOT_MASK[b : b + 1], "smooth_l1", layerwise_std)
        torch.testing.assert_close(single[0], loss[b], rtol=1e-6, atol=0)


def test_kv_keys_and_values_add_up() -> None:
    tensors = cache()
    both, keys, values = (kv_loss(*tensors, SLOT_MASK, "mse", True, parts) for parts in get_args(Parts))
    torch.testing.assert_close(keys + values, both)
    assert (keys[[0, 1, 3]] != values[[0, 1, 3]]).all()


def test_kv_divides_the_residual_by_each_layers_deviation() -> None:
    """Layer deviations 1 and 10, residual 5 everywhere: mse (25 + 0.25) / 2, keys and values alike."""
    teacher = torch.tensor([[1.0, -1.0], [10.0, -10.0]]).view(2, 1, 1, 1, 2)
    loss = kv_loss(teacher, teacher, teacher + 5, teacher + 5, torch.ones(1, 1, dtype=torch.bool), "mse", True)
    assert loss.tolist() == [12.625]


@pytest.mark.parametrize("garbage", [0.0, torch.nan, torch.inf])
@pytest.mark.parametrize("layerwise_std", [True, False])
@pytest.mark.parametrize("name", DISTANCES)
def test_kv_moves_the_students_filled_slots_only(name: str, layerwise_std: bool, garbage: float) -> None:
    filled = LEAF_MASK[None, :, None, :, None].expand(2, 3, 2, 3, 4)
    tensors = [x.detach().masked_fill(~filled, garbage).requires_grad_() for x in leaves()]
    teacher_keys, teacher_values, student_keys, student_values = tensors
    loss = kv_loss(teacher_keys, teacher_values, student_keys, student_values, LEAF_MASK, name, layerwise_std)
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
    tensors = leaves()
    kv_loss(*tensors, LEAF_MASK, "smooth_l1", True, parts).sum().backward()
    grads = [tensors[2].grad, tensors[3].grad]
    assert grads[moved] is not None
    assert grads[moved].any()
    assert grads[1 - moved] is None


def test_gradients_come_back_in_the_students_dtype() -> None:
    keys, values, student_keys, student_values = leaves(torch.bfloat16)
    kv_loss(keys, values, student_keys, student_values, LEAF_MASK, "smooth_l1", True).sum().backward()
    assert student_keys.grad is not None
    assert student_keys.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("layerwise_std", [True, False])
@pytest.mark.parametrize("name", DISTANCES)
def test_gradients_equal_finite_differences(name: str, layerwise_std: bool) -> None:
    keys, values, student_keys, student_values = leaves(torch.float64)
    assert torch.autograd.gradcheck(
        lambda k, v: kv_loss(keys, values, k, v, LEAF_MASK, name, layerwise_std), (student_keys, student_values)
    )


def test_constant_teacher_gives_a_finite_loss() -> None:
    flat = torch.ones(2, 1, 1, 1, 3)
    assert kv_loss(flat, flat, flat + 1, flat + 1, torch.ones(1, 1, dtype=torch.bool), "smooth_l1", True).isfinite().all()


def test_half_precision_is_computed_in_float32() -> None:
    """4096 distances of 1/16 in bfloat16 would add up to 16 instead of 256."""
    teacher, student = torch.zeros(1, 1, 1, 1, 4096, dtype=torch.bfloat16), torch.full((1, 1, 1, 1, 4096), 0.25, dtype=torch.bfloat16)
    assert kv_loss(teacher, teacher, student, student, torch.ones(1, 1, dtype=torch.bool), "mse", False).tolist() == [0.0625]


def test_the_loss_stays_float32_under_autocast() -> None:
    tensors = leaves()
    plain = kv_loss(*tensors, LEAF_MASK, "smooth_l1", True)
    with torch.autocast("cpu", torch.bfloat16):
        cast = kv_loss(*tensors, LEAF_MASK, "smooth_l1", True)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)


def test_the_loss_never_waits_for_the_device() -> None:
    """The meta device cannot be read, so a loss that needed a number on the host would fail."""
    tensors = [x.detach().to("meta") for x in leaves()]
    loss = kv_loss(*tensors, LEAF_MASK.to("meta"), "smooth_l1", True)
    assert (loss.shape, loss.device.type) == ((3,), "meta")


def test_settings_offer_these_parts() -> None:
    assert get_args(LossConfig.model_fields["kv_parts"].annotation) == get_args(Parts)
