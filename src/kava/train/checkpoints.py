"""What a run writes to go on from or to keep.

checkpoint-12/          weights, tokenizer and configuration, as `kava.checkpoint` writes them, and:
  optimizer.pt scheduler.pt scaler.pt (fp16)
  rng_state.pth         of each process, with several rng_state_0.pth ...
  trainer_state.json    see `kava.train.state`
best_checkpoint/        weights, tokenizer and configuration alone
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kava.checkpoint import Trained, fitting, read_kava_config, save_checkpoint, write_weights
from kava.results import BEST_CHECKPOINT
from kava.runtime import processes
from kava.runtime.atomic import write_atomic
from kava.train.guard import generator_states, restore_generators
from kava.train.resume import keep_newest, load_weights
from kava.train.sharding import whole_weights
from kava.train.state import STATE, State

# What every checkpoint says of the best one.
_OF_THE_BEST = ("step", "validation", "wall_seconds", "skipped_batches")


class Checkpoints:
    """The checkpoints of a run. All processes call its methods, and the main one writes.

    Args:
        run: the output directory.
        trained: model, tokenizer and configuration.
    """

    def __init__(self, run: Path, trained: Trained) -> None:
        self.run = run
        self.trained = trained
        self.sharded = trained.config.system.fsdp

    def weights(self) -> dict[str, Tensor] | None:
        """Those of a model that is split over the processes, put together; else None."""
        return whole_weights(self.trained.model) if self.sharded else None

    def save(self, state: State, parts: Mapping[str, Any]) -> None:
        """Write `checkpoint-<step>`, and discard those beyond `training.save_total_limit`.

        Args:
            state: of the run.
            parts: optimizer, schedule and scaler by file name; those without a state leave no file.

        Raises:
            UserError: the disk is full or the place is read-only.
        """
        weights = self.weights()
        # The main process puts the state of a split optimizer together from everyone's.
        states = {name: part.state_dict() for name, part in parts.items()} if self.sharded or processes.is_main() else {}
        generators = processes.gather([_random_states()])

        def write(staging: Path) -> None:
            write_weights(staging, self.trained, weights)
            for name, content in states.items():
                if content:
                    torch.save(content, staging / f"{name}.pt")
            for rank, content in enumerate(generators):
                torch.save(content, staging / _random_file(rank))
            (staging / STATE).write_text(json.dumps(state.to_dict(), indent=2) + "\n", encoding="utf-8")

        if processes.is_main():
            write_atomic(self.run / f"checkpoint-{state.global_step}", write)
            keep_newest(self.run, self.trained.config.training.save_total_limit, state.global_step)
        processes.wait()

    def save_best(self, metadata: dict[str, Any]) -> None:
        """Write `best_checkpoint`, with what is known about it now.

        Raises:
            UserError: the disk is full or the place is read-only.
        """
        weights = self.weights()
        self.trained.metadata |= {name: metadata[name] for name in _OF_THE_BEST}
        if processes.is_main():
            save_checkpoint(self.run / BEST_CHECKPOINT, self.trained, weights)

    def load(self, checkpoint: Path, parts: Mapping[str, Any]) -> State:
        """Go back to where a checkpoint was written; `parts` as in `save`. Random generators are left to `load_generators`.

        Raises:
            UserError: it does not fit this run.
        """
        with fitting(checkpoint):
            # Those of a split model were read before it was split.
            if not self.sharded:
                load_weights(checkpoint, self.trained)
            for name, part in parts.items():
                if part.state_dict():
                    part.load_state_dict(torch.load(checkpoint / f"{name}.pt", map_location="cpu", weights_only=True))
            state = State.from_file(checkpoint / STATE)
        known = read_kava_config(checkpoint)
        self.trained.metadata |= {name: known[name] for name in _OF_THE_BEST if name in known}
        return state

    def load_generators(self, checkpoint: Path) -> None:
        """Random generators as they were when the checkpoint was written; of another number of processes there are none.

        Raises:
            UserError: the file does not hold them.
        """
        path = checkpoint / _random_file(processes.rank())
        if path.exists():
            with fitting(checkpoint):
                _restore_random(torch.load(path, weights_only=True))


def _random_file(rank: int) -> str:
    return f"rng_state_{rank}.pth" if processes.world_size() > 1 else "rng_state.pth"


def _random_states() -> dict[str, Any]:
    # Plain numbers and tensors: anything else could not be read back without unpickling code.
    name, key, *rest = np.random.get_state(legacy=True)
    return {"python": random.getstate(), "numpy": (name, np.asarray(key).tolist(), *rest), "torch": generator_states()}


def _restore_random(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    restore_generators(states["torch"])
