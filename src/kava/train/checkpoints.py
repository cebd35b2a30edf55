"""Checkpoints that a run writes, to resume from or to keep.

checkpoint-12/          weights, tokenizer and configuration, as `kava.checkpoint` writes them, and:
  optimizer.pt scheduler.pt scaler.pt (fp16)
  rng_state.pth         random generators; with several processes rng_state_0.pth ...
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
from kava.train.sharding import gather_full_weights
from kava.train.state import STATE, State

# Metadata of the best checkpoint, which later checkpoints record too.
_OF_THE_BEST = ("step", "validation", "wall_seconds", "skipped_batches")


class Checkpoints:
    """Checkpoints of a run. All processes call its methods; only the main process writes.

    Args:
        run: the output directory.
        trained: model, tokenizer and configuration.
    """

    def __init__(self, run: Path, trained: Trained) -> None:
        self.run = run
        self.trained = trained
        self.sharded = trained.config.system.fsdp

    def weights(self) -> dict[str, Tensor] | None:
        """Full weights gathered from all processes if the model is sharded; else None."""
        return gather_full_weights(self.trained.model) if self.sharded else None

    def save(self, state: State, parts: Mapping[str, Any]) -> None:
        """Write `checkpoint-<step>`, and discard the oldest checkpoints beyond `training.save_total_limit`.

        Args:
            state: state of the run.
            parts: optimizer, schedule and scaler by file name; a part with an empty state is not written.

        Raises:
            UserError: the disk is full or the directory is read-only.
        """
        weights = self.weights()
        # The state of a sharded optimizer is gathered, so all processes must ask for it.
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
        """Write `best_checkpoint`, with its metadata (step, validation results, wall time, skipped steps).

        Raises:
            UserError: the disk is full or the directory is read-only.
        """
        weights = self.weights()
        self.trained.metadata |= {name: metadata[name] for name in _OF_THE_BEST}
        if processes.is_main():
            save_checkpoint(self.run / BEST_CHECKPOINT, self.trained, weights)

    def load(self, checkpoint: Path, parts: Mapping[str, Any]) -> State:
        """Load weights, `parts` (as in `save`) and state from a checkpoint. Random generators are loaded by `load_generators`.

        Raises:
            UserError: the checkpoint does not fit this run.
        """
        with fitting(checkpoint):
            # The weights of a sharded model were loaded before it was sharded.
            if not self.sharded:
                load_weights(checkpoint, self.trained)
            for name, part in parts.items():
                if part.state_dict():
                    # Of a sharded optimizer's state each process reads its part of the file alone.
                    held = torch.load(checkpoint / f"{name}.pt", map_location="cpu", weights_only=True, mmap=self.sharded)
                    part.load_state_dict(held)
            state = State.from_file(checkpoint / STATE)
        known = read_kava_config(checkpoint)
        self.trained.metadata |= {name: known[name] for name in _OF_THE_BEST if name in known}
        return state

    def load_generators(self, checkpoint: Path) -> None:
        """Restore this process's random generators; does nothing if the checkpoint has no file for this process.

        Raises:
            UserError: the file does not contain generator states.
        """
        path = checkpoint / _random_file(processes.rank())
        if path.exists():
            with fitting(checkpoint):
                _restore_random(torch.load(path, weights_only=True))


def _random_file(rank: int) -> str:
    return f"rng_state_{rank}.pth" if processes.world_size() > 1 else "rng_state.pth"


def _random_states() -> dict[str, Any]:
    # Plain numbers and tensors only: `weights_only=True`, which runs no pickled code, cannot load anything else.
    name, key, *rest = np.random.get_state(legacy=True)
    return {"python": random.getstate(), "numpy": (name, np.asarray(key).tolist(), *rest), "torch": generator_states()}


def _restore_random(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    restore_generators(states["torch"])
