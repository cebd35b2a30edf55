"""The loop by itself: it goes on exactly where it stopped, and a micro-batch never waits for the device."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.checks import make_trained
from helpers.loops import entries, make_loop, weights
from helpers.tiny import make_batch, make_examples, mini_examples, tiny_model
from kava.checkpoint import Trained, load_checkpoint
from kava.errors import UserError
from kava.evaluate.accuracy import Answered, Evaluation
from kava.generate import Generation
from kava.train.batch_step import BatchStep
from kava.train.resume import checkpoints
from kava.train.signals import StopOnSignal
from kava.train.state import STATE, State


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    trained = make_trained(tmp_path_factory.mktemp("loop"))
    for module in trained.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    return trained


@pytest.mark.parametrize("method", ["kava", "simcot"])
def test_every_term_is_logged_beside_the_step(method: str, tmp_path: Path) -> None:
    """A term of the name of another entry would be lost."""
    loop, _ = make_loop(make_trained(tmp_path, method=method), tmp_path / "run", "cpu", training={"max_steps": 1, "logging_steps": 1})
    loop.run()
    (entry,) = entries(loop)
    used = {"student_ce", "teacher_ce", "codi", {"kava": "kv", "simcot": "step_ce"}[method]}
    assert entry["step"] == 1
    assert {name for name in loop.model.settings.weights if name in entry} == used
    assert entry["loss"] == pytest.approx(sum(loop.model.settings.weights[name] * entry[name] for name in used), rel=1e-5)


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "no"), ("cpu", "fp16"), *(pytest.param("cuda", each, marks=pytest.mark.gpu) for each in ("no", "bf16", "fp16"))],
)
def test_it_goes_on_exactly_within_an_epoch_and_at_its_end(trained: Trained, tmp_path: Path, device: str, precision: str) -> None:
    """Dropout, moments, schedule, half a log line and the loss scale included. An epoch is four steps."""
    whole, model = make_loop(trained, tmp_path / "whole", device, system={"mixed_precision": precision})
    whole.run()
    assert [checkpoint.name for checkpoint in checkpoints(tmp_path / "whole")] == [f"checkpoint-{step}" for step in (5, 4, 3, 2, 1)]
    moved = weights(model)
    assert all(not torch.equal(moved[name], value) for name, value in weights(trained).items() if "lora_B" in name)
    for start in (3, 4):
        again, other = make_loop(trained, tmp_path / f"again-{start}", device, system={"mixed_precision": precision})
        torch.manual_seed(start)
        again.run(tmp_path / "whole" / f"checkpoint-{start}")
        assert entries(again) == entries(whole)
        assert all(torch.equal(value, moved[name]) for name, value in weights(other).items())


def test_a_stage_s_first_step_finds_an_optimizer_that_knows_nothing(trained: Trained, tmp_path: Path) -> None:
    """As a new one would move the weights from there, and the same after a resume; the learning rate goes on."""
    whole, model = make_loop(trained, tmp_path / "whole", "cpu", training={"max_steps": 3})
    whole.resets_optimizer = lambda step: step == 2
    whole.run()
    plain, other = make_loop(trained, tmp_path / "plain", "cpu", training={"max_steps": 3})
    plain.run()
    moved, expected = weights(model), [value.item() for value in (s["step"] for s in whole.updates.optimizer.state.values())]
    assert expected == [1.0] * len(expected)
    assert any(not torch.equal(value, moved[name]) for name, value in weights(other).items())
    assert [entry["learning_rate"] for entry in entries(whole)] == [entry["learning_rate"] for entry in entries(plain)]
    for count, start in enumerate(("checkpoint-1", "checkpoint-2")):
        again, resumed = make_loop(trained, tmp_path / f"again-{count}", "cpu", training={"max_steps": 3})
        again.resets_optimizer = whole.resets_optimizer
        again.run(tmp_path / "whole" / start)
        assert all(torch.equal(value, moved[name]) for name, value in weights(resumed).items())


def test_in_fp16_a_gradient_that_no_loss_scale_makes_finite_ends_the_run(trained: Trained, tmp_path: Path) -> None:
    """The scaler halves its scale from 4 to below 1 in three steps; without a limit the run would end with the weights it began with."""
    loop, _ = make_loop(trained, tmp_path / "run", "cpu", system={"mixed_precision": "fp16"}, training={"max_bad_batches": 1})
    loop.updates.scaler = torch.amp.GradScaler("cpu", init_scale=4)
    loop.batch_step.scaler = loop.updates.scaler
    next(value for value in loop.model.parameters() if value.requires_grad).register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(UserError, match=r"^step 5: the gradient is NaN though all losses are finite .*--training.max_bad_batches 2"):
        loop.run()
    assert sorted(path.name for path in (tmp_path / "run").glob("bad_batch-*")) == ["bad_batch-4", "bad_batch-5"]
    assert (loop.state.skipped_batches, loop.updates.schedule.last_epoch) == (1, 0)


class Stop(StopOnSignal):
    """A signal in the second step."""

    def requested(self, device: Any) -> bool:
        self.steps = getattr(self, "steps", 0) + 1
        return self.steps == 2


def test_a_signal_while_the_processes_agree_is_everyone_s_after_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [signal.SIGUSR1]

    def all_reduce(number: torch.Tensor, op: Any) -> None:
        if sent:
            os.kill(os.getpid(), sent.pop())

    monkeypatch.setattr("kava.runtime.processes.world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    with StopOnSignal() as stop:
        assert [stop.requested("cpu") for _ in range(2)] == [False, True]
        assert stop.received is signal.SIGUSR1


def test_a_signal_saves_and_leaves_the_validation_out(trained: Trained, tmp_path: Path) -> None:
    loop, _ = make_loop(trained, tmp_path / "run", "cpu", training={"eval_steps": 2, "save_steps": 9})
    loop.stop, loop.validate = Stop(), lambda: pytest.fail("whoever sent the signal waits")
    assert loop.run().global_step == 2
    assert [checkpoint.name for checkpoint in checkpoints(tmp_path / "run")] == ["checkpoint-2"]


def graded(correct: int) -> Evaluation:
    """Four questions, this many of them right."""
    examples = list(mini_examples(4))
    answers = [example.answer if place < correct else "-1" for place, example in enumerate(examples)]
    return Evaluation(
        [Answered(example, Generation(answer, [], 1, 1, 0, True, answer)) for example, answer in zip(examples, answers, strict=True)],
        seconds=1.0,
    )


def test_a_signal_cuts_a_validation_off_and_the_resume_runs_it(trained: Trained, tmp_path: Path) -> None:
    """Between two checkpoints; cut off once more on the resume, where no step may come before it."""
    changes = {"training": {"eval_steps": 2, "save_steps": 9, "max_steps": 3}}
    whole, model = make_loop(trained, tmp_path / "whole", "cpu", **changes)
    whole.validate = lambda: graded(whole.state.global_step)
    whole.run()
    run, start = tmp_path / "run", None
    for _ in range(2):
        loop, _ = make_loop(trained, run, "cpu", **changes)
        with StopOnSignal() as loop.stop:
            loop.validate = lambda: os.kill(os.getpid(), signal.SIGUSR1) or pytest.fail("whoever sent the signal waits")
            assert loop.run(start).global_step == 2
        assert loop.stop.exit_code == 85
        assert not loop.state.evaluated()
        (start,) = checkpoints(run)
        assert start.name == "checkpoint-2"
        assert not (run / "best_checkpoint").exists()
    again, resumed = make_loop(trained, run, "cpu", **changes)
    again.validate = lambda: graded(again.state.global_step)
    again.run(start)
    assert entries(again) == entries(whole)
    assert load_checkpoint(run / "best_checkpoint").metadata["step"] == 3
    assert all(torch.equal(value, weights(model)[name]) for name, value in weights(resumed).items())
    # What a kill before the next checkpoint leaves knows of the validation.
    assert [entry["eval_accuracy"] for entry in State.from_file(start / STATE).log_history if "eval_accuracy" in entry] == [0.5]


def test_a_validation_that_runs_out_of_memory_loses_no_step(trained: Trained, tmp_path: Path) -> None:
    loop, _ = make_loop(trained, tmp_path / "run", "cpu", training={"eval_steps": 2, "save_steps": 2})

    def answer() -> Evaluation:
        raise MemoryError

    loop.validate = answer
    with pytest.raises(UserError, match="validation ran out of memory .* --resume goes on with it"):
        loop.run()
    assert [checkpoint.name for checkpoint in checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    again, _ = make_loop(trained, tmp_path / "run", "cpu", training={"eval_steps": 2, "save_steps": 2})
    again.validate = lambda: graded(again.state.global_step)
    again.run(tmp_path / "run" / "checkpoint-2")
    assert [entry["step"] for entry in entries(again) if "eval_accuracy" in entry][:2] == [2, 4]


def test_several_processes_are_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the answers of the others."""
    monkeypatch.setattr("kava.runtime.processes.world_size", lambda: 2)
    with StopOnSignal() as stop:
        assert stop.cut_off(lambda: os.kill(os.getpid(), signal.SIGUSR1) or "its end") == "its end"
        assert stop.received is signal.SIGUSR1


def test_a_signal_is_left_to_the_program_where_a_thread_trains() -> None:
    """Python lets only the main thread handle signals."""
    before = signal.getsignal(signal.SIGTERM)

    def run() -> int:
        with StopOnSignal() as stop:
            return stop.exit_code if signal.getsignal(signal.SIGTERM) is before else -1

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(run).result() == 0


def test_the_best_checkpoint_is_the_first_with_the_highest_validation_accuracy(trained: Trained, tmp_path: Path) -> None:
    right = iter([1, 3, 3])
    seen: list[dict[str, Tensor]] = []
    loop, own = make_loop(trained, tmp_path / "run", "cpu", training={"eval_steps": 1, "max_steps": 3, "save_steps": 9})

    def validate() -> Evaluation:
        seen.append({name: value.clone() for name, value in weights(own).items()})
        return graded(next(right))

    loop.validate = validate
    state = loop.run()
    assert (state.best_global_step, state.best_metric, len(seen)) == (2, 0.75, 3)
    best = load_checkpoint(tmp_path / "run" / "best_checkpoint")
    assert best.metadata["step"] == 2
    kept = weights(best)
    assert kept.keys() == seen[1].keys()
    assert all(torch.equal(kept[name], value) for name, value in seen[1].items())
    assert any(not torch.equal(kept[name], value) for name, value in seen[2].items())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_micro_batch_never_waits_for_the_gpu_and_gradients_stay_in_place(trained: Trained, tmp_path: Path, precision: str) -> None:
    loop, own = make_loop(trained, tmp_path / "run", "cuda", system={"mixed_precision": precision})
    own.model.train()
    loop.run()
    held = {name: value.grad.data_ptr() for name, value in own.model.named_parameters() if value.grad is not None}
    assert all(value.grad is None or not value.grad.any() for value in own.model.parameters())
    batches = list(loop.batches.of(0))
    loop.batch_step(batches[0].batch, 2.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.batch_step(batches[1].batch, 2.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert held == {name: value.grad.data_ptr() for name, value in own.model.named_parameters() if value.grad is not None}
    assert loop.updates.optimizer.param_groups[0]["fused"]


def test_a_step_keeps_no_graph_of_its_losses() -> None:
    """What is logged after the step must not hold the activations of every micro-batch until then."""
    model = tiny_model()
    losses = BatchStep(model, "no", torch.amp.GradScaler("cpu", enabled=False))(make_batch(model, make_examples()), examples=5.0)
    assert losses.keys() == {"loss", "student_ce", "teacher_ce", "codi", "kv"}
    assert not any(value.requires_grad for value in losses.values())
    assert any(parameter.grad is not None for parameter in model.parameters())
