"""The Hugging Face Trainer with our loss, validation by generation, whole-or-absent checkpoints, and a guard against bad numbers."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_callback import TrainerState

from kava.checkpoint import Trained, fitting, save_checkpoint, write_weights
from kava.errors import UserError
from kava.evaluate.accuracy import Evaluation
from kava.losses.total import TERM_NAMES
from kava.results import BEST_CHECKPOINT
from kava.runtime.atomic import naming_disk_errors, publish, seal
from kava.train.curriculum import Curriculum
from kava.train.events import Events
from kava.train.guard import Seen, SkippedBatches, explain, generator_states, is_sound, shown
from kava.train.meter import LossMeter
from kava.train.prepare import bucketed
from kava.train.replay import save_step
from kava.train.resume import keep_newest, load_weights
from kava.train.sharding import make_portable, together, whole, whole_weights

STAGING = ".writing"
REAL = "real_examples"
STATE = "trainer_state.json"


class KavaTrainer(Trainer):
    """Trains a `KavaModel`.

    Args:
        trained: model, tokenizer and configuration, as they go into checkpoints.
        validate: answers the validation questions with the current weights.
        curriculum: builds the batches of a method that has one; the data collator then only hands examples on.
        kwargs: of the Hugging Face Trainer.
    """

    def __init__(self, trained: Trained, validate: Callable[[], Evaluation], curriculum: Curriculum | None = None, **kwargs: Any) -> None:
        super().__init__(model=trained.model, **kwargs)
        self.trained = trained
        self.validate = validate
        self.curriculum = curriculum
        # The loss below is already divided by the examples of the whole accumulated batch.
        self.model_accepts_loss_kwargs = True
        self.seen: list[Seen] = []
        self.begun = time.perf_counter()
        self._generators: dict[str, Tensor] = {}
        self.gradient_norm: Tensor | None = None
        for callback in (LossMeter(), SkippedBatches(), Events(self)):
            self.add_callback(callback)
        # The Trainer computes the norm in order to clip, and keeps it to itself.
        clip = self.accelerator.clip_grad_norm_

        def clip_and_keep(*arguments: Any, **options: Any) -> Any:
            norm = clip(*arguments, **options)
            self.gradient_norm = whole(norm) if self.sharded else norm
            return self.gradient_norm

        self.accelerator.clip_grad_norm_ = clip_and_keep
        self.sharded = trained.config.system.fsdp
        if self.sharded:
            # The model is split over the processes already: nothing is to wrap it, or to move it.
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    @property
    def meter(self) -> LossMeter:
        """The running sums (a resumed run replaces the object)."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, LossMeter))

    @property
    def skipped(self) -> SkippedBatches:
        """The count of skipped batches (a resumed run replaces the object)."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, SkippedBatches))

    def create_optimizer(self, *arguments: Any, **options: Any) -> torch.optim.Optimizer:
        """As the Trainer does.

        Raises:
            UserError: the optimizer needs a package or a device that is not there.
        """
        try:
            optimizer: torch.optim.Optimizer = super().create_optimizer(*arguments, **options)
        except (ImportError, ValueError, RuntimeError) as error:
            name = self.trained.config.training.optimizer
            raise UserError(f"training.optimizer {name} cannot be used here: {' '.join(str(error).split())[:200]}") from None
        if self.sharded:
            make_portable(optimizer)
        return optimizer

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> tuple[list[Any], int]:
        """The batches of one optimizer step, and how many examples they hold."""
        samples = list(islice(epoch_iterator, num_batches))
        if self.curriculum is not None:
            # Not in the loader, which fetches ahead: a batch would come from the stage of an earlier step.
            samples = [{"batch": self.curriculum.collate(examples, self.state.global_step).to(device)} for examples in samples]
        return samples, self._get_num_items_in_batch(samples, device)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Mean over examples of the total loss; the terms are logged apart."""
        real = inputs.get(REAL, len(inputs["batch"]))
        output = model(batch=inputs["batch"])
        loss, terms = output["loss"][:real], output["terms"]
        present = {name: getattr(terms, name)[:real] for name in TERM_NAMES if getattr(terms, name) is not None}
        self.seen.append(Seen(inputs["batch"], self._generators, {"loss": loss.detach(), **present}))
        # Gradients are averaged over the processes, so that each process's part counts as often as there are processes.
        mean = loss.sum() * self.args.world_size / (num_items_in_batch or real)
        return (mean, output) if return_outputs else mean

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one batch; remembers what a replay needs."""
        self._generators = generator_states()
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def guard_step(self) -> None:
        """Before the optimizer moves anything: count the step's losses, or refuse the step where a number is not finite.

        Raises:
            UserError: more bad steps than `training.max_bad_batches`; the step is saved for `kava replay`.
        """
        seen, self.seen = self.seen, []
        # A loss scaler (fp16) meets infinite gradients by design, and skips those steps itself.
        norm = None if self.accelerator.scaler is not None else self.gradient_norm
        if is_sound([one.values["loss"] for one in seen], norm, self.args.world_size):
            for one in seen:
                self.meter.add(*self._over_processes(dict(one.values), len(one.values["loss"])))
            return
        step, number = self.state.global_step + 1, float("nan") if self.gradient_norm is None else float(self.gradient_norm)
        problem, examples = explain(seen, number)
        rank = f"-rank{self.args.process_index}" if self.args.world_size > 1 else ""
        place = Path(self.args.output_dir) / f"bad_batch-{step}{rank}"
        save_step(place, self.trained, seen, step, problem, examples, number, self._weights())
        allowed = self.trained.config.training.max_bad_batches
        message = f"step {step}: {problem} ({shown(examples)}); kava replay {place} takes the step again"
        if self.skipped.count >= allowed:
            cure = f"go on without such batches: --resume --training.max_bad_batches {allowed + 1}"
            raise UserError(f"{message}; lower training.learning_rate, mend the data, or {cure}")
        self.skipped.count += 1
        print(f"kava: {message}; skipped, {self.skipped.count} of at most {allowed}", file=sys.stderr, flush=True)
        # Without gradients the optimizer leaves weights and its own state as they are.
        self.model.zero_grad()

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        """Examples, not tokens, are what the loss is a mean of; over all processes, and each example once."""
        loader = self.accelerator.gradient_state
        if self.args.world_size > 1 and batch_samples and loader.end_of_dataloader and loader.remainder > 0:
            # accelerate fills the last batches up with the first examples: those are computed and not counted.
            last, before = batch_samples[-1], self.args.process_index * self.args.per_device_train_batch_size
            last[REAL] = min(max(loader.remainder - before, 0), len(last["batch"]))
        count = sum(sample.get(REAL, len(sample["batch"])) for sample in batch_samples)
        return int(self.accelerator.reduce(torch.tensor(count, device=device))) if self.args.world_size > 1 else count

    def _over_processes(self, values: dict[str, Tensor], examples: int) -> tuple[dict[str, Tensor], int]:
        """Sums over all processes' examples, so that every process logs and saves the whole run's numbers."""
        if self.args.world_size == 1:
            return values, examples
        sums = torch.stack([value.detach().double().sum() for value in values.values()])
        total = self.accelerator.reduce(torch.cat([sums, sums.new_tensor([examples])]))
        return dict(zip(values, total[:-1], strict=True)), int(total[-1])

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int] | None:
        training = self.trained.config.training
        if not training.sort_by_length:
            sampler: torch.utils.data.Sampler[int] | None = super()._get_train_sampler(train_dataset)
            return sampler
        collator = self.data_collator if self.curriculum is None else self.curriculum.collator
        return bucketed(self.trained.config, self.train_dataset, collator, self.args.world_size)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replace the Trainer's running loss by ours, and add the terms and the throughput of all processes."""
        if "loss" in logs:
            # Ours leaves skipped batches out; where there were no others, there is no loss.
            throughput, means = self.meter.take_throughput(), self.meter.take()
            others = {name: value for name, value in logs.items() if name != "loss" and isfinite(value)}
            first = {"loss": means["loss"]} if means else {}
            logs = {**first, **others, **{name: means[name] for name in TERM_NAMES if name in means}}
            if throughput:
                logs["examples_per_second"] = throughput
        super().log(logs, start_time)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Validation by generation."""
        evaluation = together(self.trained.model, self.validate) if self.sharded else self.validate()
        metrics = {
            f"{metric_key_prefix}_accuracy": evaluation.accuracy,
            f"{metric_key_prefix}_forward_passes": evaluation.mean("forward_passes"),
            f"{metric_key_prefix}_seconds_per_question": evaluation.seconds_per_question,
        }
        self.log(dict(metrics))
        control: Any = self.control  # type: ignore[has-type]
        self.control = self.callback_handler.on_evaluate(self.args, self.state, control, metrics)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best:
            weights = self._weights()
            if self.args.should_save:
                seconds = round(time.perf_counter() - self.begun, 3)
                now = {"step": self.state.global_step, "validation": metrics, "wall_seconds": seconds}
                self.trained.metadata |= {**now, "skipped_batches": self.skipped.count}
                save_checkpoint(Path(self.args.output_dir) / BEST_CHECKPOINT, self.trained, weights)
        return is_best

    def _weights(self) -> dict[str, Tensor] | None:
        """The gathered weights of a model that is split over the processes, all of which call this; else None."""
        return whole_weights(self.trained.model) if self.sharded else None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights; all processes come here, and the main one writes."""
        weights = self._weights()
        if self.args.should_save:
            directory = Path(output_dir or self.args.output_dir)
            directory.mkdir(parents=True, exist_ok=True)
            write_weights(directory, self.trained, weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.sharded and not self.args.should_save:
            # The main process puts the state together from everyone's.
            self.optimizer.state_dict()
        super()._save_optimizer_and_scheduler(output_dir)

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(super()._get_output_dir(trial)) / STAGING)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The Trainer writes into a staging folder; the finished checkpoint is sealed and renamed."""
        with naming_disk_errors(Path(self.args.output_dir)):
            self._save_whole(model, trial)

    def _save_whole(self, model: nn.Module, trial: Any) -> None:
        run = Path(self.args.output_dir)
        staging = run / STAGING
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}").mkdir(parents=True)
        # Every rank writes its random state there: not before the folder is made, and all before it is renamed.
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for written in staging.iterdir():
                seal(written)
                publish(written, run / written.name)
            staging.rmdir()
            keep_newest(run, self.trained.config.training.save_total_limit)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.sharded:
            # Read before the model was split.
            return
        with fitting(resume_from_checkpoint):
            load_weights(Path(resume_from_checkpoint), self.trained)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with fitting(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with fitting(checkpoint):
            super()._load_rng_state(checkpoint)

    def resume(self, checkpoint: Path | None) -> None:
        """Train from a checkpoint to the end, or from the start where there is none.

        Raises:
            UserError: the checkpoint does not fit this run.
        """
        if checkpoint is None:
            self.train()
            return
        with fitting(checkpoint):
            state = TrainerState.load_from_json(str(checkpoint / STATE))
        if state.global_step < state.max_steps:
            self.train(resume_from_checkpoint=str(checkpoint))
            return
        # The Trainer itself would take one step too many.
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        self.validate_if_due()

    def validate_if_due(self) -> None:
        """Make up for a validation that a signal left out (see `StopOnSignal`): the state has none for its last step."""
        state = self.state
        if state.global_step == 0 or any(entry["step"] == state.global_step and "eval_accuracy" in entry for entry in state.log_history):
            return
        every = self.trained.config.training.eval_steps
        due = state.epoch % 1 == 0 if every is None else state.global_step % every == 0
        if due or state.global_step >= state.max_steps:
            self._determine_best_metric(self.evaluate(), None)
