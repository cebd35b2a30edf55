"""Matrix products by either library: the same numbers, and which of them is asked."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kava.runtime import cpu_matmul
from kava.runtime.cpu_matmul import add_matmul_, batched_matmul, has_no_amx, linear, matmul, onednn_is_faster, transposed_matmul

ROWS, INNER, OUTER = 37, 19, 23
has_onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.skipif(not has_onednn, reason="a torch without oneDNN")), False])
def by_onednn(request: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(cpu_matmul, "MIN_MULTIPLICATIONS", 0)
    monkeypatch.setattr(cpu_matmul, "onednn_is_faster", lambda: request.param)
    return bool(request.param)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found.double() - expected).abs().max() <= 1e-5 * expected.abs().max())


CASES: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "product": lambda x, w, b: (matmul(x, w.T), x.double() @ w.T.double()),
    "product of columns of a wider matrix": lambda x, w, b: (matmul(x[:, :7], w[:, :7].T), x[:, :7].double() @ w[:, :7].T.double()),
    "transposed product": lambda x, w, b: (transposed_matmul(x, x[:, :5]), x.T.double() @ x[:, :5].double()),
    "transposed product, the second wider": lambda x, w, b: (transposed_matmul(x[:, :5], x), x[:, :5].T.double() @ x.double()),
    "linear": lambda x, w, b: (linear(x, w, None), x.double() @ w.T.double()),
    "linear with a bias": lambda x, w, b: (linear(x, w, b), x.double() @ w.T.double() + b.double()),
    "added": lambda x, w, b: (add_matmul_(b.repeat(ROWS, 1), x, w.T, 0.3), b.double() + 0.3 * x.double() @ w.T.double()),
}


@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_float64(case: str, by_onednn: bool) -> None:
    found, expected = CASES[case](drawn(ROWS, INNER), drawn(OUTER, INNER), drawn(OUTER))
    assert found.dtype == torch.float32
    assert close(found, expected)


@pytest.mark.skipif(not has_onednn, reason="a torch without oneDNN")
def test_what_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products, other types, autocast, and tensors that stand for others."""
    monkeypatch.setattr(cpu_matmul, "onednn_is_faster", lambda: True)
    large, small = torch.zeros(2**10, 2**6), torch.zeros(2**6, 2**4)
    assert cpu_matmul._by_onednn(large, small)
    assert not cpu_matmul._by_onednn(large[:-1], small)
    assert not cpu_matmul._by_onednn(large.double(), small.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not cpu_matmul._by_onednn(large, small)
    with FakeTensorMode() as mode:
        assert not cpu_matmul._by_onednn(mode.from_tensor(large), mode.from_tensor(small))


names_processor = pytest.mark.skipif(
    not has_onednn or not hasattr(torch.cpu, "get_capabilities"), reason="a torch that does not name its processor"
)


@names_processor
@pytest.mark.parametrize(
    ("about", "faster"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_f": True}, True),
        ({"cpu_name": "AMD EPYC", "avx512_f": False}, False),
        ({"cpu_name": "Intel Xeon", "avx512_f": True}, False),
        ({}, False),
    ],
)
def test_which_library_multiplies(about: dict[str, Any], faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: about)
    assert onednn_is_faster.__wrapped__() is faster


@pytest.mark.skipif(not has_onednn or not has_no_amx(), reason="a torch without oneDNN, or a processor that multiplies in bfloat16")
@pytest.mark.parametrize(("rows", "inner", "columns"), [(72, 16, 150), (150, 72, 16), (72, 150, 16), (64, 64, 300), (300, 64, 64)])
def test_batched_products_are_in_float32(rows: int, inner: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN may use bfloat16, and does not; the permission ends with the call."""
    monkeypatch.setattr(cpu_matmul, "onednn_is_faster", lambda: True)
    left, right = drawn(128, inner, rows).transpose(1, 2), drawn(128, columns, inner).transpose(1, 2)
    assert cpu_matmul._batched_by_onednn(left, right)
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    found = batched_matmul(left, right, 0.25)
    assert torch.backends.mkldnn.matmul.fp32_precision == before != "bf16"  # type: ignore[attr-defined]
    assert close(found, 0.25 * left.double() @ right.double())
    monkeypatch.setattr(cpu_matmul, "onednn_is_faster", lambda: False)
    assert close(batched_matmul(left, right, 0.25), found.double())


@names_processor
@pytest.mark.parametrize(("about", "plain"), [({"amx_bf16": False}, True), ({"amx_bf16": True}, False), ({}, False)])
def test_a_processor_that_multiplies_in_bfloat16_is_not_allowed_to(
    about: dict[str, Any], plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: about)
    assert has_no_amx.__wrapped__() is plain
    monkeypatch.setattr(cpu_matmul, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(cpu_matmul, "has_no_amx", lambda: plain)
    large = torch.zeros(128, 64, 128)
    assert cpu_matmul._batched_by_onednn(large, large.transpose(1, 2)) is plain
    assert not cpu_matmul._batched_by_onednn(large[:8], large[:8].transpose(1, 2))
    assert not cpu_matmul._batched_by_onednn(large.double(), large.transpose(1, 2).double())
