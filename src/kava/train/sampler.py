"""Batches of examples from one length bucket: few shapes, little padding. They depend only on seed and epoch."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int

from kava.data.buckets import MAX_BUCKETS, Buckets, fit_buckets
from kava.data.encoded_rows import Lengths

# Minimum number of batches that a bucket fills. With 1, many examples of a bucket would be in one batch in every epoch.
LEAST_BATCHES = 1.5


def widths_of(lengths: Lengths) -> Int[np.ndarray, "N 3"]:
    """Tokens of each example's question, trace and answer, which are padded separately."""
    return np.stack(lengths, axis=1)


def padding_share(lengths: Lengths, order: Sequence[int] | Int[np.ndarray, " N"], batch_size: int, buckets: Buckets | None = None) -> float:
    """Share of positions that are padding if examples come in this order; without buckets, batches are padded to their longest parts."""
    widths = widths_of(lengths)[np.asarray(order)]
    batches = np.split(widths, range(batch_size, len(widths), batch_size))
    longest = [batch.max(axis=0).tolist() for batch in batches]
    padded = [parts if buckets is None else buckets.around(*parts) for parts in longest]
    return 1 - int(widths.sum()) / sum(len(batch) * sum(parts) for batch, parts in zip(batches, padded, strict=True))


class LengthSortedSampler:
    """Shuffles the examples of every bucket, cuts them into batches, and shuffles the batches.

    Examples that do not fill a batch go to the next larger bucket, so that all batches except the last are full.

    Args:
        lengths: tokens of each example's parts, which are padded separately.
        batch_size: examples that are padded together.
        seed: seed of the shuffles.
        most: maximum number of buckets, not counting the last one.

    Attributes:
        buckets: lengths that the batches must be padded to.
    """

    def __init__(self, lengths: Lengths, batch_size: int, seed: int, most: int = MAX_BUCKETS) -> None:
        widths = widths_of(lengths)
        self.buckets = fit_buckets(widths, least=int(LEAST_BATCHES * batch_size), most=most)
        self.bucket = self.buckets.smallest(widths)
        self.batch_size = batch_size
        self.seed = seed

    def order(self, epoch: int) -> Int[np.ndarray, " N"]:
        """The order of the examples in an epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        shuffled = torch.randperm(len(self.bucket), generator=generator).numpy()
        batches, rest = self._batches(shuffled[np.argsort(self.bucket[shuffled], kind="stable")])
        # Only the last batch may be smaller.
        return np.concatenate([*(batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()), rest])

    def _batches(self, examples: Int[np.ndarray, " N"]) -> tuple[list[Int[np.ndarray, " B"]], Int[np.ndarray, " _"]]:
        """Full batches of examples that are sorted by bucket, and the examples left at the end."""
        count = len(self.buckets.edges)
        starts = np.bincount(self.bucket, minlength=count).cumsum()[:-1]
        held = [[part] for part in np.split(examples, starts)]
        batches: list[Int[np.ndarray, " B"]] = []
        rest = examples[:0]
        for index, parts in enumerate(held):
            together = np.concatenate(parts)
            full = len(together) // self.batch_size * self.batch_size
            batches += np.split(together[:full], range(self.batch_size, full, self.batch_size)) if full else []
            rest = together[full:]
            if index < count - 1:
                # Put first, so that no example moves to a larger bucket than necessary.
                held[self.buckets.next[index]].insert(0, rest)
        return batches, rest
