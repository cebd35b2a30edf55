"""Cross-entropy in slices: the same losses and gradients as from all logits at once."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from kava.losses.sliced import sliced_token_losses


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
