"""The Hugging Face Trainer with our loss, validation by generation, and whole-or-absent checkpoints."""

import shutil
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from kava.checkpoint import PROJECTION, Trained, naming_disk_errors, publish, save_checkpoint, seal, write_weights
from kava.evaluate.accuracy import Evaluation
from kava.losses.total import LossTerms
from kava.results import BEST_CHECKPOINT
from kava.train.sampler import LengthSortedSampler

STAGING = ".writing"
TERM_NAMES = tuple(field.name for field in fields(LossTerms))


class LossMeter(TrainerCallback, ExportableState):
    """Sums of the loss and its terms since the last log line; part of the Trainer's state, so that a resumed run logs the same."""

    def __init__(self, sums: dict[str, float] | None = None, examples: int = 0) -> None:
        self.sums: dict[str, Any] = dict(sums or {})
        self.examples = examples
        self.timed, self.seconds, self.begun, self.before = 0, 0.0, 0.0, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock; it stands still in between, during validation and saving."""
        self.begun, self.before = time.perf_counter(), self.examples

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.seconds += time.perf_counter() - self.begun
        self.timed += self.examples - self.before

    def take_throughput(self) -> float | None:
        """Examples per second of this process since the last call; None before the first step."""
        throughput = self.timed / self.seconds if self.seconds else None
        self.timed, self.seconds = 0, 0.0
        return throughput

    def add(self, values: dict[str, Tensor], examples: int) -> None:
        """Add per-example values; they stay on their device until the next log line."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().double().sum()
        self.examples += examples

    def take(self) -> dict[str, float]:
        """Means since the last call."""
        means = {name: float(total) / self.examples for name, total in self.sums.items()} if self.examples else {}
        self.sums, self.examples = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {"sums": {name: float(total) for name, total in self.sums.items()}, "examples": self.examples}, "attributes": {}}


class KavaTrainer(Trainer):
    """Trains a `KavaModel`.

    Args:
        trained: model, tokenizer and configuration, as they go into checkpoints.
        validate: answers the validation questions with the current weights.
        kwargs: of the Hugging Face Trainer.
    """

    def __init__(self, trained: Trained, validate: Callable[[], Evaluation], **kwargs: Any) -> None:
        super().__init__(model=trained.model, **kwargs)
        self.trained = trained
        self.validate = validate
        # The loss below is already divided by the examples of the whole accumulated batch.
        self.model_accepts_loss_kwargs = True
        self.add_callback(LossMeter())

    @property
    def meter(self) -> LossMeter:
        """The running sums (a resumed run replaces the object)."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, LossMeter))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Mean over examples of the total loss; the terms are logged apart."""
        output = model(**inputs)
        loss, terms = output["loss"], output["terms"]
        present = {name: getattr(terms, name) for name in TERM_NAMES if getattr(terms, name) is not None}
        self.meter.add({"loss": loss, **present}, len(loss))
        mean = loss.sum() / (num_items_in_batch or len(loss))
        return (mean, output) if return_outputs else mean

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        """Examples, not tokens, are what the loss is a mean of."""
        return sum(len(sample["batch"]) for sample in batch_samples)

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int] | None:
        training = self.trained.config.training
        if not training.sort_by_length:
            sampler: torch.utils.data.Sampler[int] | None = super()._get_train_sampler(train_dataset)
            return sampler
        lengths = [example.length for example in self.train_dataset]
        return LengthSortedSampler(lengths, training.batch_size * self.args.world_size, training.seed)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replace the Trainer's running loss by ours, and add the terms and the throughput of all processes."""
        if "loss" in logs:
            logs = {**logs, **self.meter.take()}
            if throughput := self.meter.take_throughput():
                logs["examples_per_second"] = throughput * self.args.world_size
        super().log(logs, start_time)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Validation by generation."""
        evaluation = self.validate()
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
        if is_best and self.args.should_save:
            self.trained.metadata |= {"step": self.state.global_step, "validation": metrics}
            save_checkpoint(Path(self.args.output_dir) / BEST_CHECKPOINT, self.trained)
        return is_best

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        directory = Path(output_dir or self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        write_weights(directory, self.trained)

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
            self._rotate(run)

    def _rotate(self, run: Path) -> None:
        """Keep the newest `save_total_limit` checkpoints; the best one lives apart and is never touched."""
        limit = self.trained.config.training.save_total_limit
        if limit is not None:
            for old in checkpoints(run)[limit:]:
                shutil.rmtree(old)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(Path(resume_from_checkpoint), self.trained)


def checkpoints(run: Path) -> list[Path]:
    """Resumable checkpoints of a run, newest first."""
    found = [path for path in run.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)


def load_weights(directory: Path, trained: Trained) -> None:
    """Load the weights of a checkpoint into a model that was built in the same way."""
    model = trained.model.backbone.model
    trained.model.projection.load_state_dict(load_file(directory / PROJECTION))
    adapter = directory / "adapter_model.safetensors"
    if adapter.exists():
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(adapter))
        return
    for weights in sorted(directory.glob("model*.safetensors")):
        missing = model.load_state_dict(load_file(weights), strict=False)
        if missing.unexpected_keys:
            raise ValueError(f"{weights} does not fit the model: {missing.unexpected_keys}")
    model.tie_weights()
