"""SIM-CoT's step loss (arXiv 2509.20317): how well the text of each step can be decoded from its latents."""

from jaxtyping import Float, Int
from torch import Tensor


def step_loss(losses: Float[Tensor, "B C"], steps: Int[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """Average over the tokens of each step, then over an example's steps, so that a short step counts as much as a long one.

    SIM-CoT's code averages over the tokens of the k-th steps of a whole batch, then over k; here the loss of an example does not depend
    on its batch. For a batch of one example the two are the same.

    Args:
        losses: cross-entropy of each token of the trace in nats; 0 at padding.
        steps: the step that each token belongs to; -1: padding.

    Returns:
        Loss of each example; 0 for one without steps.
    """
    share = (steps >= 0).to(losses.dtype) / (steps[:, :, None] == steps[:, None, :]).sum(-1)
    # `share` sums to 1 over the tokens of a step, so its sum is the number of steps.
    return (losses * share).sum(-1) / share.sum(-1).clamp_min(1)
