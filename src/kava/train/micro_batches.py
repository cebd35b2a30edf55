"""Number of examples that a device computes at once: as many as should fit its memory, halved each time the memory runs out.

A step still has `training.batch_size` examples: its loss is the mean over all of them, however they are cut. The result of an example does
not depend on the others in its batch, so a cut changes losses and gradients only by rounding errors, and which trace entries are kept not
at all. Only dropout depends on the cut: its masks are drawn for all examples that are computed at once.
"""

import math
from collections import Counter
from typing import Any

import torch

from kava.config import Config
from kava.data.buckets import Buckets
from kava.data.collate import Batch
from kava.errors import UserError
from kava.methods import METHODS
from kava.runtime import processes

# The guide's suggestion comes first.
CURE = (
    "give --training.batch_size 64 --training.gradient_accumulation_steps 2, or half and twice of that; "
    "--training.gradient_checkpointing true and a lower --dataset.max_length take less too"
)


class MicroBatches:
    """Decides how batches are cut into micro-batches of equal shape.

    Args:
        batch_size: examples in a full batch.
        limit: number of positions, padding included, that are expected to fit on the device; infinity: no limit.
        thought: latent positions of an example.
        longest: positions per example that every batch is cut for; None: each batch is cut for its own.

    Attributes:
        limit: as given; lowered each time the device runs out of memory.
    """

    def __init__(self, batch_size: int, limit: int | float = math.inf, thought: int = 0, longest: int | None = None) -> None:
        self.batch_size, self.limit, self.thought, self.longest = batch_size, limit, thought, longest

    def rows(self, batch: Batch) -> int:
        """Number of examples of a batch of this shape that are computed at once: a full batch, or a half, a quarter, ... of one."""
        return self.rows_of(self._positions(batch))

    def rows_of(self, positions: int) -> int:
        """As `rows`, for examples with this number of positions."""
        fitting = self.limit / (self.longest or positions)
        halvings = math.ceil(math.log2(self.batch_size / max(fitting, 1))) if fitting < self.batch_size else 0
        return max(1, math.ceil(self.batch_size / 2**halvings))

    def halve(self, batch: Batch) -> int:
        """Lower the limit after the device ran out of memory with this batch; returns how many of its examples are computed at once now.

        Raises:
            UserError: no fewer examples can be computed at once, or other processes wait for this one.
        """
        if processes.world_size() > 1:
            raise UserError(f"a GPU ran out of memory with {len(batch)} examples at once, and the other processes wait for it; {CURE}")
        before = self.rows(batch)
        self.limit = min(self.limit, math.ceil(len(batch) / 2) * (self.longest or self._positions(batch)))
        if len(batch) == 1 or self.rows(batch) == before:
            # A batch is copied to the device before it is cut.
            count = "one example" if len(batch) == 1 else f"{len(batch)} examples"
            raise UserError(f"the device ran out of memory with {count} at once, of {self._positions(batch)} positions; {CURE}")
        return self.rows(batch)

    def _positions(self, batch: Batch) -> int:
        teacher = 0 if batch.teacher is None else batch.teacher.ids.shape[1]
        decoded = 0 if batch.steps is None else batch.steps.shape[1]
        return batch.question_ids.shape[1] + batch.student.ids.shape[1] + teacher + decoded + self.thought


def positions_of(config: Config, question: int, trace: int, answer: int) -> int:
    """Number of positions of an example with these lengths, over all passes of a step."""
    method = METHODS[config.method]
    written = trace if method.writes_cot or method.curriculum != "none" else 0
    decoded = trace + config.latent.num_tokens if method.step_decoder else 0
    return question + written + answer + (trace + answer if method.teacher else 0) + decoded + _thought(config)


def _thought(config: Config) -> int:
    """Latent positions of an example: latents are computed in the question's pass and, if parallel, again in every iteration."""
    method, latent = METHODS[config.method], config.latent
    return latent.num_tokens * (1 + latent.num_iterations * (method.latents == "parallel")) if method.uses_latents else 0


def estimate_micro_batches(config: Config, shape: Any, buckets: Buckets | None, memory: int | None) -> MicroBatches:
    """Micro-batches that are expected to fit, from a trace of the step with the longest examples; without it, batches start uncut.

    Args:
        config: run configuration.
        shape: transformers' configuration of the base model.
        buckets: lengths that batches are padded to; None: not known.
        memory: device memory in bytes; None: not known.
    """
    batch_size, thought = config.training.batch_size, _thought(config)
    if memory is None or buckets is None:
        return MicroBatches(batch_size, thought=thought)
    # Importing fake tensors takes a second, and a run on a CPU does not need them.
    from kava.train.footprint import RESERVED_FRACTION, Profile
    from kava.train.step_trace import Lengths

    question, trace, answer = buckets.edges[-1].tolist()
    longest = positions_of(config, question, trace, answer)
    try:
        profile = Profile(shape, config, Lengths(question, trace, 0, answer))
    except UserError:
        return MicroBatches(batch_size, thought=thought)
    gpus, split = processes.world_size(), config.system.fsdp
    one, full = (profile.footprint(rows, gpus, split).total for rows in (1, 1 + batch_size))
    rows = 1 + (memory * (1 - RESERVED_FRACTION) - one) / (full - one) * batch_size
    # With a sharded model, all processes must run the same passes, but their batches may be in neighbouring buckets.
    return MicroBatches(batch_size, max(rows, 1) * longest, thought, longest if split else None)


def format_micro_batches(micro: MicroBatches, config: Config, buckets: Buckets) -> str:
    """One line that says how many examples are computed at once."""
    counts = Counter(micro.rows_of(positions_of(config, *edges)) for edges in buckets.edges.tolist())
    shares = ", ".join(f"{rows} in {count}" for rows, count in sorted(counts.items(), reverse=True))
    return (
        f"examples computed at once, by expected memory: {shares} of {len(buckets.edges)} shapes (training.batch_size {micro.batch_size})"
    )


def memory_of(device: torch.device) -> int | None:
    """Total memory of a GPU in bytes; None for a CPU, whose memory other programs share."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else None
