"""Which settings differ, by dotted key."""

from kava.config import build_config
from kava.config.differences import ABSENT, differences, flatten, named_differences, why_another


def test_sections_become_dotted_keys_and_lists_stay_values() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [1, 2], "e": {}}


def test_each_key_has_one_value_per_configuration() -> None:
    assert differences([{"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}, {"b": {"c": 2}}]) == {"a": [1, 1, ABSENT], "b.c": [2, 3, 2]}
    assert differences([{"a": 1}]) == {}
    assert differences([]) == {}


def test_configurations_differ_in_what_was_set() -> None:
    contents = [
        build_config({}, "a test", overrides).to_dict() for overrides in ({}, {"training.learning_rate": 0.0002, "rkv.lambda": 0.5})
    ]
    assert differences(contents) == {"rkv.lambda": [0.1, 0.5], "training.learning_rate": [0.0008, 0.0002]}


def test_a_sentence_names_three_of_them() -> None:
    old, new = {"a": 1, "b": {"c": "x", "d": 3}, "e": 0, "f": 1}, {"a": 2, "b": {"c": "y", "d": 4}, "e": 0, "f": 2}
    assert named_differences(old, new) == "a 1, not 2; b.c 'x', not 'y'; b.d 3, not 4 and 1 more"
    assert named_differences(old, new, ["a", "b.c", "f"]) == "b.d 3, not 4"
    assert named_differences(old, old) == ""


def test_why_a_configuration_is_another_names_what_its_fingerprint_has() -> None:
    changes = {"training.learning_rate": 0.0002, "rkv.lambda": 0.5, "loss.alpha2_kv": 2, "latent.num_tokens": 6, "lora.r": 8}
    same = {"training.seed": 7, "training.num_workers": 3, "model.dtype": "float32"}
    recorded, plain, other = (build_config({}, "a test", overrides).to_dict() for overrides in (same, {}, changes))
    del recorded["system"]["fsdp"]  # a setting that is younger than the run
    assert why_another(recorded, plain) == ""
    assert why_another(plain, other) == " (lora.r 128, not 8; latent.num_tokens 24, not 6; loss.alpha2_kv 1.0, not 2.0 and 2 more)"
