"""The batches of a step: every example once per epoch, whatever the number of processes, from any step on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch

from helpers.tiny import lora_config, mini_builder, mini_examples
from kava.config.schema import TrainingConfig
from kava.data.collate import Batch, build_collator
from kava.data.encoded_rows import lengths_of
from kava.data.sequences import EncodedExample
from kava.train.batches import StepBatches
from kava.train.curriculum import Curriculum
from kava.train.sampler import LengthSortedSampler

EXAMPLES = [mini_builder().encode(example) for example in mini_examples(23)]
COLLATE = Curriculum(build_collator(lora_config(), mini_builder()))
# Batches of 3, two to a step: the last step of an epoch holds 23 - 3 * 6 = 5 examples in one process.
TRAINING = TrainingConfig(batch_size=3, gradient_accumulation_steps=2, epochs=2.5, seed=5)


def batches(rank: int = 0, processes: int = 1, **changes: object) -> StepBatches:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", str(rank))
        patch.setenv("WORLD_SIZE", str(processes))
        training = TRAINING.model_copy(update=changes)
        sampler = (
            LengthSortedSampler(lengths_of(EXAMPLES), training.batch_size * processes, training.seed) if training.sort_by_length else None
        )
        return StepBatches(EXAMPLES, COLLATE, training, torch.device("cpu"), sampler)


def served(rank: int, processes: int, steps: range, **changes: object) -> list[list[tuple[tuple[str, ...], int, bool]]]:
    """Of each step the ids of every batch, how many count, and whether it is the last."""
    source = batches(rank, processes, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", str(rank))
        patch.setenv("WORLD_SIZE", str(processes))
        return [[(micro.batch.ids, micro.real, micro.last) for micro in source.of(step)] for step in steps]


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("sort_by_length", [True, False])
def test_every_example_counts_once_per_epoch(processes: int, sort_by_length: bool) -> None:
    source = batches(processes=processes)
    for epoch in (0, 1):
        steps = range(epoch * source.steps_per_epoch, (epoch + 1) * source.steps_per_epoch)
        ranks = [served(rank, processes, steps, sort_by_length=sort_by_length) for rank in range(processes)]
        counted = [name for rank in ranks for step in rank for ids, real, _ in step for name in ids[:real]]
        assert sorted(counted) == sorted(example.id for example in EXAMPLES)
        for step, number in enumerate(steps):
            together = [rank[step] for rank in ranks]
            # All processes take as many passes, or they would wait for each other for ever.
            assert len({len(own) for own in together}) == 1
            assert sum(real for own in together for _, real, _ in own) == source.examples_in(number)
            assert all([last for *_, last in own] == [False] * (len(own) - 1) + [True] for own in together)
            assert all(ids for own in together for ids, *_ in own)


def test_several_processes_share_what_one_would_take() -> None:
    alone = served(0, 1, range(4), batch_size=6)
    both = [served(rank, 2, range(4)) for rank in (0, 1)]
    for step in range(4):
        shared = [sorted(name for ids, real, _ in parts for name in ids[:real]) for parts in zip(both[0][step], both[1][step], strict=True)]
        assert shared == [sorted(ids) for ids, *_ in alone[step]]


def test_any_step_can_be_the_first_and_workers_change_nothing() -> None:
    expected = served(0, 1, range(9))
    for first in (1, 3, 4, 6):
        source = batches()
        source.open(first)
        assert [[micro.batch.ids for micro in source.of(step)] for step in range(first, 9)] == [
            [ids for ids, *_ in step] for step in expected[first:]
        ]
    assert served(0, 1, range(9), num_workers=1) == expected


def test_orders_differ_by_epoch_and_seed() -> None:
    orders = [
        batches(sort_by_length=sort, seed=seed).order(epoch).tolist() for sort in (True, False) for seed in (5, 6) for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 8
    assert all(sorted(order) == list(range(23)) for order in orders)


def test_steps_and_epochs() -> None:
    """8 rounds make 4 steps; 2.5 epochs are 10."""
    source = batches()
    assert (source.steps_per_epoch, source.max_steps) == (4, 10)
    assert [source.epochs_after(steps) for steps in (0, 1, 4, 7, 10)] == [0, 0.25, 1, 1.75, 2.5]
    assert batches(max_steps=3).max_steps == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_is_made_for_its_own_step(workers: int) -> None:
    """A curriculum's stage is that of the step, though a worker reads ahead."""

    def collate(examples: Sequence[EncodedExample], step: int) -> Batch:
        batch = COLLATE(examples, 0)
        return Batch(**{**vars(batch), "num_latents": step})

    source = StepBatches(EXAMPLES, collate, TRAINING.model_copy(update={"num_workers": workers}), torch.device("cpu"))
    assert [[micro.batch.num_latents for micro in source.of(step)] for step in range(6)] == [[step] * 2 for step in range(6)]


# Says which processes prepare its batches, and goes on fetching until it is killed.
TRAINER = """
import sys
import psutil
from train.test_batches import batches
source = batches(num_workers=2)
for step in range(10**9):
    for _ in source.of(step):
        pass
    if step == 1:
        print(*[child.pid for child in psutil.Process().children()], flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells a process that its parent is gone")
def test_workers_of_a_killed_run_die_without_a_word() -> None:
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(tests.parent / "src")}
    words = [sys.executable, "-c", TRAINER]
    run = subprocess.Popen(words, cwd=tests, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stderr is not None
    workers = [int(word) for word in run.stdout.readline().split()]
    run.send_signal(signal.SIGKILL)
    # Ends when the last process that may write to it is gone.
    said = run.stderr.read()
    assert run.wait(timeout=60) == -signal.SIGKILL
    assert len(workers) == 2
    assert said == ""
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)
