"""Cross-entropy over labelled tokens, per example."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from kava.data.collate import IGNORED
from kava.losses.distance import at_least_float32


def token_cross_entropy(
    logits: Float[Tensor, "N V"], labels: Int[Tensor, " N"], example: Int[Tensor, " N"], num_examples: int
) -> Float[Tensor, " B"]:
    """Compute the mean cross-entropy in nats over each example's labelled tokens.

    The mean is taken within an example and not over the batch's tokens, so an example weighs the same in every batch.

    Args:
        logits: one row per labelled token of the whole batch, in any order and float type.
        labels: the token each row should predict, in [0, V), or `IGNORED` where there is none: no loss, a gradient of exactly 0.
        example: the row of the batch that each token belongs to, in [0, B).
        num_examples: B.

    Returns:
        Float32 loss of each example; 0 for an example without labelled tokens.
    """
    return mean_by_example(token_losses(logits, labels), labels, example, num_examples)


def token_losses(logits: Float[Tensor, "N V"], labels: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Compute the cross-entropy of each token in nats, in float32 or wider; 0 where the label is `IGNORED`."""
    return cross_entropy(at_least_float32(logits), labels, reduction="none", ignore_index=IGNORED)


def mean_by_example(
    losses: Float[Tensor, " N"], labels: Int[Tensor, " N"], example: Int[Tensor, " N"], num_examples: int
) -> Float[Tensor, " B"]:
    """Compute the mean of the token losses over each example's labelled tokens (`losses` is 0 elsewhere); 0 if it has none."""
    sums = losses.new_zeros(num_examples).index_add(0, example, losses)
    counts = losses.new_zeros(num_examples).index_add(0, example, (labels != IGNORED).to(losses.dtype))
    return sums / counts.clamp_min(1)
