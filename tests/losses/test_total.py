"""The total of a step: a weighted sum of its terms, in value and gradient."""

import pytest
import torch

from kava.losses import combine
from oracles import naive


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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


def test_combined_gradient_is_weighted() -> None:
    ce, kv = torch.rand(2).requires_grad_(), torch.rand(2).requires_grad_()
    combine({"student_ce": ce, "kv": kv}, {"student_ce": 1.0, "kv": 0.5}).sum().backward()
    assert ce.grad is not None
    assert ce.grad.tolist() == [1, 1]
    assert kv.grad is not None
    assert kv.grad.tolist() == [0.5, 0.5]
