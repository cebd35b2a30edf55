"""`--quick_test`: any configuration cut down to a few dozen steps, so that a newcomer sees the whole chain work."""

from collections.abc import Mapping
from typing import Any

from kava.config import Config, build_config

# A key that the user set by hand keeps the user's value.
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
    """The same configuration with small limits, where the user did not set them."""
    limits = {key: value for key, value in _LIMITS.items() if key not in overrides}
    return build_config(config.to_dict(), "--quick_test", limits)


def is_quick_test(config: Mapping[str, Any]) -> bool:
    """Whether a run's full configuration is one of a quick test: trained for so few steps on so few rows."""
    training, dataset = (section if isinstance(section := config.get(name), Mapping) else {} for name in ("training", "dataset"))
    found = training.get("max_steps"), dataset.get("max_train_samples")
    return found == (_LIMITS["training.max_steps"], _LIMITS["dataset.max_train_samples"])
