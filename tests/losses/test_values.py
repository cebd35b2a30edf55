"""Every loss against the naive float64 loops, in a batch and alone."""

import statistics
from typing import get_args

import pytest
import torch

from kava.config import LossConfig
from kava.losses import DISTANCES, codi_loss, combine, kv_loss, token_cross_entropy
from kava.losses.kv import Parts
from oracles import naive

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
SLOT_MASK = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4, [True, False, False, False]])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def cache(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Teacher keys, teacher values, student keys, student values [L=3, B=4, H=2, M=4, D=5], each on its own scale."""
    return [(torch.randn(3, 4, 2, 4, 5) * scale + scale / 3).to(dtype) for scale in (2.0, 0.5, 1.5, 0.7)]


@pytest.mark.parametrize("name", DISTANCES)
def test_distance_equals_naive(name: str) -> None:
    residual = torch.tensor([-2.5, -1.0, -0.4, 0.0, 0.99, 1.0, 1.01, 30.0], dtype=torch.float64)
    expected = [naive.distance(name, r) for r in residual.tolist()]
    torch.testing.assert_close(DISTANCES[name](residual), torch.tensor(expected, dtype=torch.float64))


def test_distances_by_hand() -> None:
    residual = torch.tensor([0.5, -3.0])
    values = {name: distance(residual).tolist() for name, distance in DISTANCES.items()}
    assert values == {"smooth_l1": [0.125, 2.5], "l1": [0.5, 3.0], "mse": [0.25, 9.0]}


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


def test_constant_teacher_gives_a_finite_loss() -> None:
    flat = torch.ones(2, 1, 1, 1, 3)
    assert kv_loss(flat, flat, flat + 1, flat + 1, torch.ones(1, 1, dtype=torch.bool), "smooth_l1", True).isfinite().all()
    assert codi_loss(flat[:, :, 0, 0], flat[:, :, 0, 0] + 1, "smooth_l1", True).isfinite().all()


def test_half_precision_is_computed_in_float32() -> None:
    """4096 distances of 1/16 in bfloat16 would add up to 16 instead of 256."""
    teacher, student = torch.zeros(1, 1, 1, 1, 4096, dtype=torch.bfloat16), torch.full((1, 1, 1, 1, 4096), 0.25, dtype=torch.bfloat16)
    assert kv_loss(teacher, teacher, student, student, torch.ones(1, 1, dtype=torch.bool), "mse", False).tolist() == [0.0625]
    logits = torch.zeros(1, 1000, dtype=torch.bfloat16)
    torch.testing.assert_close(token_cross_entropy(logits, torch.tensor([0]), torch.tensor([0]), 1), torch.tensor([6.9077554]))


def test_combine_weighs_the_terms() -> None:
    weights = {"student_ce": 1.0, "teacher_ce": 1.0, "codi": 10.0, "kv": 0.5}
    terms = {name: torch.rand(3, dtype=torch.float64) for name in weights}
    expected = [naive.total(*row, alpha1=10.0, alpha2=0.5) for row in zip(*(t.tolist() for t in terms.values()), strict=True)]
    torch.testing.assert_close(combine(terms, weights), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(combine({"kv": terms["kv"], "codi": terms["codi"]}, weights), 0.5 * terms["kv"] + 10 * terms["codi"])
    with pytest.raises(KeyError):
        combine(terms, {"student_ce": 1.0})


def test_combine_without_terms_is_an_error() -> None:
    with pytest.raises(ValueError, match="without a single loss"):
        combine({}, {})


def test_config_offers_exactly_these_losses() -> None:
    fields = LossConfig.model_fields
    assert set(get_args(fields["kv_loss_type"].annotation)) == set(DISTANCES)
    assert set(get_args(fields["codi_loss_type"].annotation)) <= set(DISTANCES)
    assert get_args(fields["kv_parts"].annotation) == get_args(Parts)
