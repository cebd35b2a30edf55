"""Fingerprint of a configuration: a hash of all settings except the seed and those that a resumed run may change.

Settings added in later versions do not change it.
"""

import hashlib
import json
from typing import Any

# Settings added after the first runs, each with its neutral value. At this value a setting is left out of the hash, so that finished
# runs keep their fingerprints.
LATER_SETTINGS = (
    ("model", "quantization", "none"),
    ("dataset", "question_suffix", "\n"),
    ("dataset", "answer_separator", " "),
    ("dataset", "answer_type", "number"),
    ("model", "revision", None),
    ("dataset", "revision", None),
    ("training", "remove_all_beyond", None),
    ("training", "removal_smoothing", None),
    ("training", "trailing_stage", False),
    ("training", "uniform_prob", 0.0),
    ("training", "reset_optimizer", False),
    ("rkv", "importance", "context"),
    ("rkv", "share", "head"),
    ("loss", "kv_iterations", "last"),
    ("evaluation", "tolerance", 0.001),
    ("loss", "alpha_step", 1.0),
    ("system", "compile", False),
    ("system", "fused_cross_entropy", False),
    ("system", "fsdp", False),
    ("system", "fused_kernels", True),
    ("system", "cuda_graphs", True),
)
# Settings that a resumed run may change: no step that both runs take depends on them. Each with the value that the hash has in its place,
# the default of the first runs, so that finished runs keep their fingerprints. A further one is added at the end.
MAY_CHANGE_ON_RESUME = {
    "training.max_bad_batches": 0, "training.num_workers": 0, "training.save_total_limit": None, "evaluation.batch_size": 32,
}  # fmt: skip
# How many of them earlier versions left out of the hash.
FORMERLY_LEFT_OUT = (0, 3)


def fingerprint(content: dict[str, Any]) -> str:
    """Return the hash of a configuration from `Config.to_dict`; equal for runs that may be aggregated. `content` is changed in place."""
    return former_fingerprint(content, len(MAY_CHANGE_ON_RESUME))


def former_fingerprint(content: dict[str, Any], left_out: int = 0) -> str:
    """As `fingerprint`, with only the first `left_out` of MAY_CHANGE_ON_RESUME left out of the hash: what earlier versions recorded."""
    for setting, value in list(MAY_CHANGE_ON_RESUME.items())[:left_out]:
        section, key = setting.split(".")
        content[section][key] = value
    del content["training"]["seed"]
    content = with_settled_dtype(content)
    for section, key, unused in LATER_SETTINGS:
        if content[section][key] == unused:
            del content[section][key]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def with_settled_dtype(content: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with `model.dtype` as the hash has it.

    What `auto` selects depends on the device, which is not part of a configuration. On a CPU it is float32, the earlier default.
    """
    model = content.get("model")
    if isinstance(model, dict) and model.get("dtype") == "auto":
        return {**content, "model": {**model, "dtype": "float32"}}
    return content


def with_later_settings(content: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration of an earlier version with the missing settings added at their neutral values."""
    for section, key, unused in LATER_SETTINGS:
        if isinstance(held := content.get(section, {}), dict):
            content = {**content, section: {key: unused, **held}}
    return content
