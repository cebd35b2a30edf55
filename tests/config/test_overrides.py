"""Overrides as a user types them."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.config_messages import message
from kava.config import Config, build_config
from kava.config.messages import is_text
from kava.config.overrides import apply_overrides, as_flags, parse_overrides
from kava.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--training.batch_size", "64"], {"training.batch_size": 64}),
        (["--training.batch_size=64"], {"training.batch_size": 64}),
        (["--training.batch-size", "64"], {"training.batch_size": 64}),
        (["--training.learning_rate", "8e-4"], {"training.learning_rate": 8e-4}),
        (["--training.weight_decay", "-0.5"], {"training.weight_decay": -0.5}),
        (["--lora.enabled", "false", "--rkv.lambda=0.3"], {"lora.enabled": False, "rkv.lambda": 0.3}),
        (["--lora.target_modules", "q_proj", "v_proj"], {"lora.target_modules": ["q_proj", "v_proj"]}),
        (["--lora.target_modules=[q_proj, v_proj]"], {"lora.target_modules": ["q_proj", "v_proj"]}),
        (["--dataset.answer_prompt", "The answer is:"], {"dataset.answer_prompt": "The answer is:"}),
        (["--dataset.answer_prompt=a = b"], {"dataset.answer_prompt": "a = b"}),
        (["--model.name", "2024-01-01"], {"model.name": "2024-01-01"}),
        (["--model.name", '"123"'], {"model.name": "123"}),
        (["--model.name", "[" * 5000], {"model.name": "[" * 5000}),
        (["--evaluation.datasets.gsm8k-hard", "/data/hard"], {"evaluation.datasets.gsm8k-hard": "/data/hard"}),
        (["--training.eval_steps", "null"], {"training.eval_steps": None}),
        (["--training.seed", "1", "--training.seed", "2"], {"training.seed": 2}),
        (["--training.seed", "1", "--training", "{seed: 2, epochs: 3}"], {"training.seed": 2, "training.epochs": 3}),
        (["--evaluation.datasets", '{"a": "x", "b": "y"}'], {"evaluation.datasets": {"a": "x", "b": "y"}}),
        (["--evaluation.datasets", '{"a": "x", "a": "y"}'], {"evaluation.datasets": '{"a": "x", "a": "y"}'}),  # no mapping, so refused
    ],
)
def test_words_become_keys_and_values(arguments: list[str], expected: dict[str, Any]) -> None:
    assert parse_overrides(arguments) == expected


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
SCALARS |= st.sampled_from(
    ["no", "8e-4", "The answer is:", "--x", "[a", "{", "'", '"', "#", "2024-01-01", "null", "0x1F", "1_000", "~", " "]
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["training.seed", "model.name", "evaluation.datasets.gsm8k-hard"]), SCALARS | st.lists(SCALARS, max_size=3)
    )
)
def test_flags_read_back_to_the_same_values(overrides: dict[str, Any]) -> None:
    assert parse_overrides(as_flags(overrides)) == overrides


def test_a_mapping_is_taken_apart() -> None:
    assert parse_overrides(["--training", "{max_steps: 5, seed: 1}", "--training.seed", "2"]) == {
        "training.max_steps": 5,
        "training.seed": 2,
    }
    with pytest.raises(UserError, match="override 'training' holds itself"):
        parse_overrides(["--training", "{a: &x {b: *x}}"])


@pytest.mark.parametrize(("key", "word", "expected"), [
    ("model.revision", "1.0", "1.0"), ("dataset.revision", "7e10234", "7e10234"), ("dataset.revision", "null", None),
    ("dataset.train_split", "on", "on"), ("dataset.name", '"2024"', "2024"), ("evaluation.datasets.own", "2024", "2024"),
    ("training.seed", "2024", 2024), ("lora.enabled", "on", True),
])  # fmt: skip
def test_a_word_for_a_text_stays_as_it_is(key: str, word: str, expected: Any) -> None:
    assert parse_overrides([f"--{key}", word], is_text=lambda name: is_text(name, Config)) == {key: expected}


def test_a_flag_needs_a_value_and_a_value_a_flag() -> None:
    with pytest.raises(UserError, match="--training.seed needs a value"):
        parse_overrides(["--training.seed", "--lora.r", "8"])
    with pytest.raises(UserError, match="unexpected argument '64'"):
        parse_overrides(["64"])


def test_overrides_win_over_the_file_and_leave_it_alone() -> None:
    content = {"training": {"batch_size": 8, "seed": 1}}
    config = build_config(content, "here.yaml", {"training.batch_size": 64, "lora.target_modules": ["q_proj"]})
    assert (config.training.batch_size, config.training.seed, config.lora.target_modules) == (64, 1, ["q_proj"])
    assert content == {"training": {"batch_size": 8, "seed": 1}}


def test_a_section_given_as_a_mapping_keeps_its_other_settings() -> None:
    """As a suite may write it, or a call from Python."""
    content = {"loss": {"alpha1_codi": 20, "layerwise_std": False}, "dataset": {"mini": {"modulus": 7}}}
    loss = build_config(content, "here.yaml", {"loss": {"alpha2_kv": 0}}).loss
    assert (loss.alpha1_codi, loss.layerwise_std, loss.alpha2_kv) == (20, False, 0)
    mini = build_config(content, "here.yaml", {"dataset": {"mini": {"max_steps": 2}}}).dataset.mini
    assert (mini.modulus, mini.max_steps) == (7, 2)
    assert build_config({}, "here.yaml", {"evaluation.datasets": {"mini": "builtin:mini"}}).evaluation.datasets == {"mini": "builtin:mini"}


def test_one_evaluation_set_is_added_without_losing_the_others() -> None:
    datasets = build_config({}, "here.yaml", {"evaluation.datasets.svamp": "/data/svamp.json"}).evaluation.datasets
    assert datasets == Config().evaluation.datasets | {"svamp": "/data/svamp.json"}
    only = build_config({"evaluation": {"datasets": {"mini": "builtin:mini"}}}, "here.yaml", {"evaluation.datasets.own": "x.json"})
    assert only.evaluation.datasets == {"mini": "builtin:mini", "own": "x.json"}


def test_a_section_left_empty_in_the_file_can_be_overridden() -> None:
    assert build_config({"lora": None}, "here.yaml", {"lora.r": 8}).lora.r == 8


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ({"training.batchsize": 4}, "unknown key 'training.batchsize'; did you mean 'batch_size'?"),
        ({"batch_size": 4}, "did you mean 'training.batch_size'?"),
        ({"training.seed.x": 4}, "override 'training.seed.x': 'seed' holds a value, not a section"),
        ({"training.batch_size": "big"}, "training.batch_size"),
        ({"": 4}, "unknown key ''"),
        ({"a.b.c": 4}, "unknown key 'a'"),
    ],
)
def test_wrong_overrides(overrides: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError) as caught:
        build_config({}, "here.yaml", overrides)
    assert part in str(caught.value)


def test_the_message_says_which_values_are_overrides() -> None:
    text = message({"training": {"epochs": 0, "seed": 1}}, {"training": {"batch_size": 0}, "evaluation.datasets.own": 3})
    file, _, overrides = text.partition("; overrides of here.yaml: ")
    assert file == "here.yaml: training.epochs: Input should be greater than 0 (got 0)"
    assert "training.batch_size" in overrides
    assert "evaluation.datasets.own: Input should be a valid string (got 3); put it in quotes" in overrides


def test_a_broken_section_is_not_hidden_by_an_override() -> None:
    with pytest.raises(UserError, match="'training' holds a value"):
        build_config({"training": 5}, "here.yaml", {"training.seed": 4})


def test_an_absent_section_starts_empty_and_one_of_the_user_s_names_from_the_defaults() -> None:
    assert apply_overrides({}, {"a.b.c": 1}, {"a": {"b": {"c": 0, "d": 2}, "e": 3}}) == {"a": {"b": {"c": 1}}}
    named = {"evaluation": {"datasets": {"d": 2}}}
    assert apply_overrides({}, {"evaluation.datasets.c": 1}, named) == {"evaluation": {"datasets": {"c": 1, "d": 2}}}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=12) | st.sampled_from(["--training.seed", "--lora.r=", "--", "--=", "--a..b"]), max_size=6))
def test_any_words_give_overrides_or_one_readable_line(arguments: list[str]) -> None:
    try:
        build_config({}, "fuzz", parse_overrides(arguments))
    except UserError as error:
        assert str(error)
