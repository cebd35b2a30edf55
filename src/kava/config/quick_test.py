"""`--quick_test`: reduce any configuration to a few dozen steps, so that a new user can try the whole pipeline."""

from collections.abc import Mapping
from typing import Any

from kava.config import Config, build_config
from kava.config.overrides import dotted

# A setting that the user gives on the command line keeps its value.
_LIMITS: dict[str, Any] = {
    "training.max_steps": 30,
    "training.batch_size": 4,
    "training.gradient_accumulation_steps": 1,
    "training.logging_steps": 5,
    "training.eval_steps": 30,
    "training.save_steps": 30,
    "training.warmup_ratio": 0.1,
    "dataset.max_train_samples": 256,
    "evaluation.validation_samples": 8,
    "evaluation.max_samples": 20,
    "evaluation.max_new_tokens": 32,
    "model.mini.pretrain_steps": 60,
    "dataset.mini.num_train": 2000,
}


def quick_test(config: Config, overrides: dict[str, Any]) -> Config:
    """Return the configuration with small limits, except for settings in `overrides`."""
    given = dotted(overrides)
    limits = {key: value for key, value in _LIMITS.items() if key not in given}
    return build_config(config.to_dict(), "--quick_test", limits)


def is_quick_test(config: Mapping[str, Any]) -> bool:
    """Return whether a run's full configuration comes from a quick test: it has the step and row limits of one."""
    training, dataset = (section if isinstance(section := config.get(name), Mapping) else {} for name in ("training", "dataset"))
    found = training.get("max_steps"), dataset.get("max_train_samples")
    return found == (_LIMITS["training.max_steps"], _LIMITS["dataset.max_train_samples"])
