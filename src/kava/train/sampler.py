"""Batches of examples of similar length, so that little of a batch is padding; a function of seed and epoch alone."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import Sampler

# Batches sorted together: enough to leave little padding, few enough to keep batches mixed.
POOL = 32


class LengthSortedSampler(Sampler[int]):
    """Shuffles, sorts pools of `POOL` batches by length, and shuffles the batches.

    Args:
        lengths: tokens of each example.
        batch_size: examples that are padded together.
        seed: of the shuffles.
    """

    def __init__(self, lengths: Sequence[int] | Int[np.ndarray, " N"], batch_size: int, seed: int) -> None:
        self.lengths = torch.tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch, also by a resumed run."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        batches: list[torch.Tensor] = []
        for pool in order.split(POOL * self.batch_size):
            batches += pool[self.lengths[pool].argsort(stable=True, descending=True)].split(self.batch_size)
        # Only the very last batch may be short; it stays last.
        full = len(self.lengths) // self.batch_size
        short = [batch for batch in batches if len(batch) < self.batch_size]
        whole = [batch for batch in batches if len(batch) == self.batch_size]
        for index in torch.randperm(full, generator=generator).tolist():
            yield from whole[index].tolist()
        for batch in short:
            yield from batch.tolist()
