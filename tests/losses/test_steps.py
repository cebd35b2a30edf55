"""SIM-CoT's loss: a mean over an example's steps of a mean over their tokens."""

import torch

from kava.losses.steps import step_loss


def test_the_loss_is_a_mean_over_steps_of_a_mean_over_tokens() -> None:
    losses = torch.tensor([[1.0, 3.0, 5.0, 0.0], [2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    steps = torch.tensor([[0, 0, 1, -1], [0, -1, -1, -1], [-1, -1, -1, -1]])
    loss = step_loss(losses, steps)
    assert loss.tolist() == [3.5, 2.0, 0.0]
    loss.sum().backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [[0.25, 0.25, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0] * 4]
