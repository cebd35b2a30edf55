"""A run does not die of memory: batches are cut in parts of one shape, smaller ones where the device runs out, and nothing else changes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from helpers.checks import make_trained
from helpers.loops import entries, make_loop, weights
from helpers.tiny import lora_config, make_batch, make_examples, mini_examples, relative, tiny_model
from kava.checkpoint import Trained
from kava.config.schema import TrainingConfig
from kava.data.buckets import Buckets
from kava.data.collate import Batch, build_collator
from kava.errors import UserError
from kava.train import micro_batches, train
from kava.train.batches import StepBatches
from kava.train.curriculum import Curriculum
from kava.train.footprint import RESERVED_FRACTION, Profile
from kava.train.loop import Loop
from kava.train.micro_batches import MicroBatches, estimate_micro_batches, format_micro_batches, memory_of, positions_of
from kava.train.step_trace import Lengths

BATCH = {"batch_size": 5, "gradient_accumulation_steps": 2, "max_steps": 3, "logging_steps": 1}
ERROR = "CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return make_trained(tmp_path_factory.mktemp("micro"))


def with_dropout(trained: Trained, share: float) -> Trained:
    for module in trained.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
    return trained


def a_loop(trained: Trained, run: Path, device: str = "cpu") -> tuple[Loop, Trained]:
    return make_loop(trained, run, device, training=BATCH, system={"mixed_precision": "no"})


class Small:
    """A device that runs out of memory with more than some examples at once, after a part of the backward pass."""

    def __init__(self, loop: Loop, most: int) -> None:
        self.step, self.most, self.sizes = loop.batch_step, most, list[int]()
        loop.batch_step = self  # type: ignore[assignment]

    def __call__(self, batch: Batch, examples: float, last: bool = True) -> dict[str, Tensor]:
        self.sizes.append(len(batch))
        if len(batch) > self.most:
            self.step(batch.rows(0, 1), examples, last)
            raise torch.OutOfMemoryError(ERROR)
        return self.step(batch, examples, last)


def close(one: Trained, other: Trained) -> None:
    for name, value in weights(one).items():
        assert relative(weights(other)[name], value) < 1e-4, name


def test_a_device_that_runs_out_changes_no_loss_and_no_weight(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without dropout: whole batches of 5 and, after one failure each, parts of 3 and then 2 (and a rest)."""
    with_dropout(trained, 0.0)
    whole, expected = a_loop(trained, tmp_path / "whole")
    whole.run()
    small, found = a_loop(trained, tmp_path / "small")
    device = Small(small, most=2)
    small.report.quiet = False
    small.run()
    close(expected, found)
    assert [entry["loss"] for entry in entries(small)] == pytest.approx([entry["loss"] for entry in entries(whole)], rel=1e-5)
    assert device.sizes[:3] == [5, 3, 2]
    assert max(device.sizes[2:]) == 2
    assert small.state.position_limit == small.batches.micro.limit
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[2] for line in told if "memory" in line] == [
        "out of memory with 5 examples at once; 3 from step 1 on",
        "out of memory with 3 examples at once; 2 from step 1 on",
    ]


def test_random_numbers_are_those_of_a_run_that_knew_its_memory(trained: Trained, tmp_path: Path) -> None:
    """With dropout, bit for bit: the failed attempts leave no trace, neither in the gradients nor in the generators."""
    with_dropout(trained, 0.1)
    first, found = a_loop(trained, tmp_path / "found")
    Small(first, most=2)
    first.run()
    second, known = a_loop(trained, tmp_path / "known")
    second.batches.micro.limit = first.batches.micro.limit
    second.run()
    assert entries(first) == entries(second)
    assert all(torch.equal(value, weights(known)[name]) for name, value in weights(found).items())
    # And a resumed run knows it from its checkpoint.
    third, resumed = a_loop(trained, tmp_path / "resumed")
    sizes = Small(third, most=2).sizes
    third.run(tmp_path / "found" / "checkpoint-1")
    assert max(sizes) == 2
    assert entries(third) == entries(first)
    assert all(torch.equal(value, weights(found)[name]) for name, value in weights(resumed).items())


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError(ERROR), MemoryError(), RuntimeError("[enforce fail] can't allocate memory")])
def test_where_nothing_smaller_is_left_one_sentence_has_the_cure(trained: Trained, tmp_path: Path, failure: Exception) -> None:
    loop, _ = a_loop(trained, tmp_path / "none")

    def fail(*_: Any) -> Any:
        raise failure

    loop.batch_step = fail  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"^the device ran out of memory with one example at once, of \d+ positions; give .*") as refused:
        loop.run()
    assert "--training.batch_size 64 --training.gradient_accumulation_steps 2" in str(refused.value)


def test_a_device_that_has_no_room_for_the_batch_itself_ends_the_run(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is copied before it is cut, so that smaller parts do not help."""
    loop, _ = a_loop(trained, tmp_path / "copy")
    attempts = iter([torch.OutOfMemoryError(ERROR)] * 3)

    def fail(*_: Any) -> Any:
        raise next(attempts)

    monkeypatch.setattr(Batch, "to", fail)
    with pytest.raises(UserError, match=r"^the device ran out of memory with 5 examples at once, of \d+ positions; give "):
        loop.run()


@pytest.mark.parametrize("fetch", [0, 1, 2])
def test_memory_that_runs_out_while_a_batch_is_built_is_not_the_device_s(trained: Trained, tmp_path: Path, fetch: int) -> None:
    """In the first step, within it, and in the second; none is left out, and none repeated with other rows."""
    loop, _ = a_loop(trained, tmp_path / "loader")
    collate, built = loop.batches.collate, list[int]()

    def fail(examples: Any, step: int) -> Batch:
        built.append(step)
        if len(built) == fetch + 1:
            raise MemoryError
        return collate(examples, step)

    loop.batches.collate = fail
    with pytest.raises(UserError, match=r"^building batches ran out of memory \(MemoryError\); end other programs .*num_workers 1$"):
        loop.run()
    assert (loop.state.global_step, loop.batches.micro.limit) == (fetch // 2, math.inf)


def test_wherever_else_a_training_runs_out_the_cure_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError(ERROR)

    monkeypatch.setattr(train, "_train", fail)
    with pytest.raises(UserError, match=r"^training ran out of memory \(CUDA out of memory\); give --training.batch_size 64 "):
        train.train(lora_config(), tmp_path / "run")


def test_a_validation_that_runs_out_names_its_own_batch_size(trained: Trained, tmp_path: Path) -> None:
    loop, _ = a_loop(trained, tmp_path / "validation")

    def fail() -> Any:
        raise torch.OutOfMemoryError(ERROR)

    loop.validate = fail
    with pytest.raises(UserError, match=r"^validation ran out of memory \(CUDA out of memory\); give --evaluation.batch_size 8"):
        loop.run()


def test_other_errors_are_not_taken_for_memory(trained: Trained, tmp_path: Path) -> None:
    loop, _ = a_loop(trained, tmp_path / "other")

    def fail(*_: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    loop.batch_step = fail  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        loop.run()


def test_with_several_processes_it_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batches.processes, "world_size", lambda: 2)
    with pytest.raises(UserError, match="the other processes wait for it; give --training.batch_size 64"):
        MicroBatches(8).halve(make_batch(tiny_model(), make_examples(4)))


def test_full_batches_are_halved_until_they_fit() -> None:
    micro = MicroBatches(100, limit=1000)
    assert [micro.rows_of(positions) for positions in (5, 10, 11, 20, 21, 999, 5000)] == [100, 100, 50, 50, 25, 1, 1]
    assert MicroBatches(100).rows_of(10**9) == 100
    assert MicroBatches(100, limit=1000, longest=20).rows_of(1) == 50
    batch = make_batch(tiny_model(), make_examples(4))
    micro = MicroBatches(4)
    assert [micro.rows(batch), micro.halve(batch), micro.rows(batch)] == [4, 2, 2]
    assert micro.halve(batch.rows(0, 2)) == micro.rows(batch) == 1
    # Once lowered, the limit is not raised by a larger batch.
    with pytest.raises(UserError, match="out of memory with 4 examples at once"):
        micro.halve(batch)
    assert micro.rows(batch) == 1


@pytest.mark.parametrize("method", ["kava", "codi", "simcot", "full_cot", "coconut", "no_cot"])
def test_positions_are_those_of_the_batch(method: str) -> None:
    config = lora_config(**{"method": method, "latent.num_tokens": 4 if method != "no_cot" else 0})
    batch = make_batch(tiny_model(method=method), make_examples(3), 4)
    trace = max(suffix.cot_width for suffix in (batch.student, batch.teacher) if suffix is not None)
    expected = positions_of(config, batch.question_ids.shape[1], trace, batch.student.answer_mask.shape[1])
    micro = estimate_micro_batches(config, None, None, None)
    micro.limit = expected * 2
    micro.batch_size = 4
    assert micro.rows(batch) == 2
    micro.limit -= 1
    assert micro.rows(batch) == 1


def test_what_fits_comes_from_a_trace_of_the_step() -> None:
    shape = AutoConfig.for_model("llama", hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, vocab_size=300)
    config = lora_config(**{"training.batch_size": 32, "latent.num_tokens": 6})
    buckets = Buckets(np.array([[10, 4, 6], [20, 12, 8]]))
    profile = Profile(shape, config, Lengths(20, 12, 0, 8))
    for rows in (2, 9, 32):
        micro = estimate_micro_batches(config, shape, buckets, math.ceil(profile.footprint(rows).total / (1 - RESERVED_FRACTION)))
        allowed = micro.rows_of(positions_of(config, 20, 12, 8))
        assert allowed <= rows < 4 * allowed
        assert profile.footprint(allowed).total <= profile.footprint(rows).total
    line = format_micro_batches(MicroBatches(32, 32 * positions_of(config, 10, 4, 6)), config, buckets)
    assert line == "examples computed at once, by expected memory: 32 in 1, 16 in 1 of 2 shapes (training.batch_size 32)"
    assert estimate_micro_batches(config, shape, buckets, None).limit == math.inf
    assert memory_of(torch.device("cpu")) is None


def test_every_process_takes_as_many_passes_as_the_first(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """14 examples in batches of 5 on two processes: the second round has 4 for the first process and none for the second."""
    training = TrainingConfig(batch_size=5, gradient_accumulation_steps=2)
    encoded = trained.builder.encode_all(list(mini_examples(14)))
    curriculum = Curriculum(build_collator(trained.config, trained.builder))
    found = {}
    monkeypatch.setattr(micro_batches.processes, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(micro_batches.processes, "rank", lambda rank=rank: rank)
        batches = StepBatches(encoded, curriculum, training, torch.device("cpu"), micro=MicroBatches(5, limit=0))
        found[rank] = [(len(part.batch), part.real, part.last) for part in batches.of(0)]
    assert [real for _, real, _ in found[0]] == [1] * 5 + [1] * 4
    assert [real for _, real, _ in found[1]] == [1] * 5 + [0] * 4
    assert [last for *_, last in found[1]] == [False] * 8 + [True]
