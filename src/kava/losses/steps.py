"""SIM-CoT's step loss (arXiv 2509.20317): how well the text of each step can be read back from its latents."""

from jaxtyping import Float, Int
from torch import Tensor


def step_loss(losses: Float[Tensor, "B C"], steps: Int[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """Mean over an example's steps of the mean over the tokens of each, so that a short step counts as much as a long one.

    SIM-CoT's code takes the mean over the tokens of the k-th steps of a whole batch, then over k; here each example gets the loss that
    it gets alone. For one example the two are the same.

    Args:
        losses: cross-entropy of each token of the trace in nats; 0 at padding.
        steps: the step that each token belongs to; -1: padding.

    Returns:
        Loss of each example; 0 for one without steps.
    """
    share = (steps >= 0).to(losses.dtype) / (steps[:, :, None] == steps[:, None, :]).sum(-1)
    # One over the tokens of a step, summed over them, is 1: the sum counts steps.
    return (losses * share).sum(-1) / share.sum(-1).clamp_min(1)
