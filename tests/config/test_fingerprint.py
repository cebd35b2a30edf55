"""The fingerprint: every setting is in it but the seed and what a resume may change; settings of a later version leave it as it was."""

from typing import Any

import pytest

from kava.config import Config, build_config, recorded_config, renewed_fingerprint
from kava.config.differences import flatten
from kava.config.fingerprint import LATER_SETTINGS, MAY_CHANGE_ON_RESUME, former_fingerprint


def test_what_an_earlier_version_wrote_down_stays_what_it_was() -> None:
    """Settings that came later are not the published ones then."""
    config = build_config({"method": "icot"}, "a test", {"training.removal_smoothing": None, "training.reset_optimizer": False})
    config.training.remove_all_beyond = None
    older = config.to_dict()
    for section, key, _ in LATER_SETTINGS:
        del older[section][key]
    assert recorded_config(older, "a test") == config
    assert recorded_config(older, "a test").fingerprint() == config.fingerprint()


def _other(key: str, value: Any) -> Any:
    choices = {"method": "codi", "loss.kv_loss_type": "mse", "loss.codi_loss_type": "l1", "loss.kv_rope": "pre", "loss.kv_parts": "keys"}
    choices |= {"rkv.eviction": "crop", "rkv.group_reduction": "mean", "model.dtype": "bfloat16", "model.attn_implementation": "eager"}
    choices |= {"loss.kv_iterations": "all", "rkv.importance": "trace", "rkv.share": "layer"}
    choices |= {"dataset.cot_type": "natural_language", "dataset.on_bad_row": "skip", "training.lr_scheduler": "linear"}
    choices |= {"system.mixed_precision": "fp16", "system.device": "cpu", "lora.target_modules": ["q_proj"]}
    choices |= {"dataset.answer_type": "choice", "model.revision": "v1", "dataset.revision": "v1"}
    choices |= {"model.quantization": "4bit", "model.mini.hidden_size": 256, "model.mini.num_heads": 8, "model.mini.num_kv_heads": 4}
    if key in choices:
        return choices[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value / 2 if isinstance(value, float) and value else value + 1
    return 3 if value is None else f"{value}x"


@pytest.mark.parametrize(("key", "value"), list(flatten(Config().to_dict()).items()))
def test_fingerprint_ignores_the_seed_what_a_resume_may_change_and_nothing_else(key: str, value: Any) -> None:
    changed = build_config({}, "here.yaml", {key: _other(key, value)})
    assert flatten(changed.to_dict())[key] != value
    assert (changed.fingerprint() == Config().fingerprint()) == (key == "training.seed" or key in MAY_CHANGE_ON_RESUME)


def test_what_a_resume_may_change_counts_as_its_default() -> None:
    """So the fingerprint of a run with the defaults is the one that earlier versions wrote down."""
    assert {key: flatten(Config().to_dict())[key] for key in MAY_CHANGE_ON_RESUME} == MAY_CHANGE_ON_RESUME
    assert Config().fingerprint() == former_fingerprint(Config().to_dict()) == "5e31912bca8aff3b"


def test_what_an_earlier_version_wrote_down_of_other_settings_is_read_as_today_s() -> None:
    settings = {"training.save_total_limit": 2, "training.num_workers": 3}
    content = build_config({}, "a test", settings).to_dict()
    assert renewed_fingerprint("30534015ae5701e5", content) == Config().fingerprint()
    assert (
        renewed_fingerprint("83e2615e021e3c71", build_config({}, "a test", {"training.max_bad_batches": 1}).to_dict())
        == Config().fingerprint()
    )
    for section, key, _ in LATER_SETTINGS:
        del content[section][key]
    assert renewed_fingerprint("30534015ae5701e5", content) == Config().fingerprint()


@pytest.mark.parametrize("recorded", ["fc5a2286c9182f8e", "4db72eedbeda718a"])
def test_versions_left_out_more_and_more(recorded: str) -> None:
    """The first nothing, the second the settings of training alone."""
    content = build_config({}, "a test", {"training.num_workers": 3, "evaluation.batch_size": 200}).to_dict()
    assert renewed_fingerprint(recorded, content) == Config().fingerprint()


@pytest.mark.parametrize(
    "content", [{}, {"training": None}, {"training": {"batch_size": "many"}}, {"loss": {"alpha3": 1}}, {"training": {"epochs": 77}}]
)
def test_a_fingerprint_of_another_configuration_stays_as_it_is_recorded(content: dict[str, Any]) -> None:
    assert renewed_fingerprint("30534015ae5701e5", content) == "30534015ae5701e5"
