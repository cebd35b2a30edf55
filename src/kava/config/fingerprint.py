"""Which configurations are the same: a hash of all settings but the seed, which settings that came later do not change."""

import hashlib
import json
from typing import Any

# Settings that came after the first runs, and the value that changes nothing: finished runs keep their fingerprints.
YOUNGER = (
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


def fingerprint(content: dict[str, Any]) -> str:
    """Of a configuration as `Config.to_dict` gives it, which is changed: equal for the runs that may be aggregated."""
    del content["training"]["seed"]
    # What `auto` chooses depends on the device, which is no part of a configuration; on a CPU it is what was the default before.
    content["model"]["dtype"] = content["model"]["dtype"].replace("auto", "float32")
    for section, key, unused in YOUNGER:
        if content[section][key] == unused:
            del content[section][key]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def with_later_settings(content: dict[str, Any]) -> dict[str, Any]:
    """A configuration of an earlier version with the settings that it lacks, at the values that change nothing."""
    for section, key, unused in YOUNGER:
        if isinstance(held := content.get(section, {}), dict):
            content = {**content, section: {key: unused, **held}}
    return content
