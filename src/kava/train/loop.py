"""The training loop.

    Loop(model, config, batches, report).run()

runs the training steps and logs them. Everything else is passed in: checkpoints, validation, trackers.
"""

import time
from collections.abc import Callable
from math import inf
from pathlib import Path

import torch
from transformers import set_seed

from kava.config import Config
from kava.errors import UserError, ran_out_of_memory, report_out_of_memory
from kava.evaluate.accuracy import Evaluation
from kava.model.fused_kernels import fuse_kernels
from kava.model.kava import KavaModel
from kava.runtime import processes
from kava.runtime.heap import keep_freed_memory
from kava.train.bad_steps import BadSteps
from kava.train.batch_step import BatchStep, distribute
from kava.train.batches import StepBatches
from kava.train.checkpoints import Checkpoints
from kava.train.guard import RecordedBatch, generator_states, restore_generators
from kava.train.optimizer import Updates
from kava.train.progress import Report
from kava.train.signals import StopOnSignal
from kava.train.state import State
from kava.train.tracking import Trackers


class Loop:
    """Trains a model.

    Args:
        model: the model; moved to the device of the batches.
        config: run configuration.
        batches: micro-batches of every step.
        report: progress report, updated after every step.
        checkpoints: where the run and its bad steps are saved; None: nothing is saved, and bad steps are not detected.
        validate: answers the validation questions with the current weights; all processes call it. None: no validation.
        trackers: receive every log entry.
        stop: ends the run after the step in which a signal was received.
        on_epoch_end: called with the number of steps taken.
        resets_optimizer: whether the optimizer state is cleared before the step with this number.

    Raises:
        UserError: the optimizer cannot be used here.
    """

    def __init__(
        self,
        model: KavaModel,
        config: Config,
        batches: StepBatches,
        report: Report,
        *,
        checkpoints: Checkpoints | None = None,
        validate: Callable[[], Evaluation] | None = None,
        trackers: Trackers | None = None,
        stop: StopOnSignal | None = None,
        on_epoch_end: Callable[[int], None] | None = None,
        resets_optimizer: Callable[[int], bool] | None = None,
    ) -> None:
        set_seed(config.training.seed)
        self.training, self.device = config.training, batches.device
        self.model, self.batches, self.report = model.to(self.device), batches, report
        self.checkpoints, self.validate, self.trackers, self.stop, self.on_epoch_end = checkpoints, validate, trackers, stop, on_epoch_end
        if self.device.type == "cpu":
            keep_freed_memory()
        if config.system.fused_kernels and not config.system.fsdp:
            fuse_kernels(self.model.backbone)
        self.resets_optimizer = resets_optimizer
        self.guard = BadSteps(checkpoints) if checkpoints else None
        self.updates = Updates(self.model, config, self.device, batches.max_steps)
        precision, graphs = config.system.mixed_precision, config.system.cuda_graphs
        self.batch_step = BatchStep(distribute(self.model, config, self.device), precision, self.updates.scaler, graphs=graphs)
        self.state = State(batches.max_steps)
        self.begun = time.perf_counter()

    def run(self, checkpoint: Path | None = None) -> State:
        """Train to the end, or until a signal is received.

        Args:
            checkpoint: checkpoint to resume from; None: start from the beginning.

        Raises:
            UserError: the checkpoint does not fit, too many steps are bad, the disk is full.
        """
        if checkpoint is not None:
            self._restore(checkpoint)
        state, training = self.state, self.training
        self.report.begin(state)
        stopping = False
        if state.global_step and self._due(training.eval_steps) and not state.evaluated():
            # A signal in the last step of the interrupted run, or in this validation, skipped it.
            stopping = self._validate()
            if state.evaluated():
                self._save()
        self.model.train()
        while state.global_step < state.max_steps and not stopping:
            begun, examples = time.perf_counter(), self.batches.examples_in(state.global_step)
            if self.resets_optimizer and self.resets_optimizer(state.global_step):
                self.updates.forget_state()
            seen = self._losses_and_gradients(state.global_step, examples)
            norm, rate = self.updates.clip(), self.updates.learning_rate
            sound = self.guard is None or not self.guard.check_and_skip(seen, norm, state, scaled=self.updates.lowers_scale)
            if sound:
                state.meter.add(seen, examples)
            self.updates.apply(sound)
            state.global_step += 1
            state.epoch = self.batches.epochs_after(state.global_step)
            state.meter.time(examples, time.perf_counter() - begun)
            self.report.step(state)
            if state.global_step % training.logging_steps == 0:
                self._log(state.meter.take(norm, rate))
            # The sender of the signal waits only seconds, and a validation takes minutes: a due validation runs after the resume.
            stopping = self._stopping()
            if self.on_epoch_end and self._due(None) and not stopping:
                self.on_epoch_end(state.global_step)
            if self._due(training.eval_steps) and not stopping:
                stopping = self._validate()
            if self._due(training.save_steps) or stopping:
                self._save()
        self.report.end(state)
        return state

    def _losses_and_gradients(self, step: int, examples: int) -> list[RecordedBatch]:
        """Forward and backward pass of the step's batches, repeated with smaller micro-batches if the device runs out of memory.

        Raises:
            UserError: the micro-batches cannot be made smaller.
        """
        generators = generator_states()
        while True:
            try:
                return self._accumulated(step, examples)
            except (MemoryError, RuntimeError) as error:
                if not ran_out_of_memory(error):
                    raise
            # Outside the except block, because the exception keeps the memory of the failed pass alive.
            self._make_room()
            restore_generators(generators)

    def _accumulated(self, step: int, examples: int) -> list[RecordedBatch]:
        """Add the step's gradients to `.grad` and return its losses; its loss is the mean over the examples of all processes."""
        seen = []
        for batch, real, last in self.batches.of(step):
            generators = generator_states()
            # Gradients are averaged over the processes, so each one divides by the mean number of examples per process.
            losses = self.batch_step(batch, examples / processes.world_size() if real else inf, last)
            seen.append(RecordedBatch(batch, generators, {name: values[:real] for name, values in losses.items()}))
        return seen

    def _make_room(self) -> None:
        """After the device ran out of memory, use smaller micro-batches from now on and discard the accumulated gradients."""
        batch, micro = self.batches.current, self.batches.micro
        assert batch is not None
        rows = micro.halve(batch)
        self.state.position_limit = int(micro.limit)
        self.report.tell(f"out of memory with {len(batch)} examples at once; {rows} from step {self.state.global_step + 1} on")
        self.updates.forget_gradients()
        self.model.backbone.adapters.forget_inputs()
        if self.device.type == "cuda":
            self.batch_step.release()
            torch.cuda.empty_cache()

    def _due(self, every: int | None) -> bool:
        """Whether an action is due that happens every `every` steps (None: at the end of each epoch); after the last step it always is."""
        step = self.state.global_step
        return step >= self.state.max_steps or step % (every or self.batches.steps_per_epoch) == 0

    def _log(self, entry: dict[str, float]) -> None:
        step, entry = self.state.global_step, entry | {"epoch": self.state.epoch}
        self.state.log_history.append(entry | {"step": step})
        self.report.log(self.state, entry)
        if self.trackers:
            self.trackers.log(entry, step)

    def _stopping(self) -> bool:
        """Whether a signal was received; all processes call this."""
        return self.stop is not None and self.stop.requested(self.device)

    def _validate(self) -> bool:
        """Answer the validation questions, and save the weights if their accuracy is the best so far; returns whether to stop.

        A signal cuts the questions off, and the validation counts for nothing then.
        """
        if self.validate is None:
            return False
        cure = "give --evaluation.batch_size 8, or less; --resume goes on with it"
        try:
            with report_out_of_memory("validation", cure):
                evaluation = self.stop.cut_off(self.validate) if self.stop else self.validate()
        except UserError:
            # The resume runs this validation; other processes wait in it, and cannot save.
            if processes.world_size() == 1:
                self._save()
            raise
        if evaluation is not None:
            self._keep(evaluation)
        return self._stopping()

    def _keep(self, evaluation: Evaluation) -> None:
        """Log a validation, and save the weights if its accuracy is the best so far."""
        metrics = {
            "eval_accuracy": evaluation.accuracy,
            "eval_forward_passes": evaluation.mean("forward_passes"),
            "eval_seconds_per_question": evaluation.seconds_per_question,
        }
        self._log(metrics)
        state = self.state
        if state.best_metric is not None and evaluation.accuracy <= state.best_metric:
            return
        state.best_metric, state.best_global_step = evaluation.accuracy, state.global_step
        if self.checkpoints:
            seconds = round(time.perf_counter() - self.begun, 3)
            now = {"step": state.global_step, "validation": metrics, "wall_seconds": seconds, "skipped_batches": state.skipped_batches}
            self.checkpoints.save_best(now)

    def _save(self) -> None:
        if self.checkpoints:
            self.checkpoints.save(self.state, self.updates.parts())

    def _restore(self, checkpoint: Path) -> None:
        assert self.checkpoints is not None
        self.state = self.checkpoints.load(checkpoint, self.updates.parts())
        self.batches.micro.limit = min(self.batches.micro.limit, self.state.position_limit or inf)
        # Opening an epoch draws from torch's generator. Within an epoch, this happened before the checkpoint was written, so it must
        # happen here before the generators are loaded.
        if self.state.global_step % self.batches.steps_per_epoch:
            self.batches.open(self.state.global_step)
        self.checkpoints.load_generators(checkpoint)
