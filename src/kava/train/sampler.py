"""Batches of examples of similar length, so that little of a batch is padding; a function of seed and epoch alone."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import Sampler

from kava.data.encoded_rows import Lengths

# Batches that are filled from one random draw: many leave little padding, few keep batches mixed.
POOL = 512


def widths_of(lengths: Lengths) -> Int[np.ndarray, "N 2"]:
    """Tokens of each example's question and of what follows it, which are padded apart."""
    return np.stack([lengths.question, lengths.trace + lengths.answer], axis=1)


def padding_share(lengths: Lengths, order: Sequence[int] | Int[np.ndarray, " N"], batch_size: int) -> float:
    """Share of the positions that is padding where examples come in this order."""
    widths = widths_of(lengths)[np.asarray(order)]
    return 1 - int(widths.sum()) / _padded(np.split(widths, range(batch_size, len(widths), batch_size)))


def _padded(batches: Iterable[Int[np.ndarray, "_ 2"]]) -> int:
    """Positions that batches of these widths take."""
    return sum(len(batch) * int(batch.max(axis=0).sum()) for batch in batches)


class LengthSortedSampler(Sampler[int]):
    """Shuffles, halves pools of batches by length until a half is a batch, and shuffles the batches.

    A question and what follows it are padded apart, so no single order suits both: each halving sorts by the one that saves more
    padding. A pool holds `POOL` batches and at most half of the data, so that other examples meet in every epoch.

    Args:
        lengths: tokens of each example's parts.
        batch_size: examples that are padded together.
        seed: of the shuffles.
    """

    def __init__(self, lengths: Lengths, batch_size: int, seed: int) -> None:
        self.widths = widths_of(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch, also by a resumed run."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.widths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self), generator=generator).numpy()
        full = len(self) // self.batch_size
        pool = max(1, min(POOL, full // 2)) * self.batch_size
        whole, rest = np.split(order, [full * self.batch_size])
        batches = [batch for start in range(0, len(whole), pool) for batch in self._halved(whole[start : start + pool])]
        for index in torch.randperm(full, generator=generator).tolist():
            yield from batches[index].tolist()
        # Only the very last batch may be short.
        yield from rest.tolist()

    def _halved(self, pool: Int[np.ndarray, " _"]) -> list[Int[np.ndarray, " _"]]:
        """Batches of similar length from whole batches of examples."""
        batches = len(pool) // self.batch_size
        if batches == 1:
            return [pool]
        middle = batches // 2 * self.batch_size
        cuts = [np.split(pool[np.argsort(width[pool], kind="stable")], [middle]) for width in self.widths.T]
        best = min(cuts, key=lambda halves: _padded(self.widths[half] for half in halves))
        return [batch for half in best for batch in self._halved(half)]
