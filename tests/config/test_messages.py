"""What a wrong key or value is told: the key, the nearest valid name and what was given."""

from typing import Any

import pytest

from helpers.config_messages import message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"loss": {"alpha2": 2}}, "unknown key 'loss.alpha2'; did you mean 'alpha2_kv'?"),
        ({"trainning": {}}, "unknown key 'trainning'; did you mean 'training'?"),
        ({"batch_size": 4}, "unknown key 'batch_size'; did you mean 'training.batch_size'?"),
        ({"loss": {"learning_rate": 1e-3}}, "unknown key 'loss.learning_rate'; did you mean 'training.learning_rate'?"),
        ({"rkv": {"xyzzy": 1}}, "unknown key 'rkv.xyzzy'; valid names: eviction, group_reduction, importance, lambda, share"),
        ({"dataset": {"mini": {"modulo": 7}}}, "unknown key 'dataset.mini.modulo'; did you mean 'modulus'?"),
        ({"]": 1}, "unknown key ']'; valid names: dataset, evaluation, latent, lora, loss, method, model, rkv, system, training"),
        ({"evaluation": {"dataset": {}}}, "unknown key 'evaluation.dataset'; did you mean 'datasets'?"),
    ],
)
def test_unknown_keys_come_with_the_right_name(content: dict[str, Any], expected: str) -> None:
    assert message(content) == f"here.yaml: {expected}"


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"training": {"batch_size": "many"}}, "training.batch_size"),
        ({"training": {"batch_size": 0}}, "training.batch_size"),
        ({"training": {"batch_size": 1.5}}, "training.batch_size"),
        ({"training": {"batch_size": True}}, "training.batch_size"),
        ({"training": {"eval_steps": False}}, "training.eval_steps"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate"),
        ({"training": {"learning_rate": float("inf")}}, "training.learning_rate"),
        ({"training": {"seed": -1}}, "training.seed"),
        ({"training": {"seed": 2**32}}, "training.seed"),
        ({"training": {"seed": 10**5000}}, "training.seed"),
        ({"training": {"batch_size": 2**63}}, "training.batch_size"),
        ({"training": {"epochs": 10**400}}, "training.epochs"),
        ({"training": {"removal_smoothing": True}}, "training.removal_smoothing"),
        ({"training": 5}, "training"),
        ({"model": {"name": 7}}, "model.name"),
        ({"model": {"name": ""}}, "model.name"),
        ({"rkv": {"lambda": 1.01}}, "rkv.lambda"),
        ({"rkv": {"eviction": "r-kv"}}, "rkv.eviction"),
        ({"loss": {"kv_loss_type": "huber"}}, "loss.kv_loss_type"),
        ({"lora": {"target_modules": 5}}, "lora.target_modules"),
        ({"lora": {"dropout": 1.0}}, "lora.dropout"),
        ({"evaluation": {"datasets": {"gsm8k": 3}}}, "evaluation.datasets.gsm8k"),
        ({"method": "kva"}, "method"),
    ],
)
def test_wrong_values_name_their_key_and_what_was_given(content: dict[str, Any], key: str) -> None:
    text = message(content)
    assert text.startswith((f"here.yaml: {key}: Input should be ", f"here.yaml: {key}: String should have "))
    assert "(got " in text
    assert len(text) < 400


def test_union_branches_do_not_show_in_the_key() -> None:
    assert "list[str]" not in message({"lora": {"target_modules": 5}})


def test_every_problem_is_reported_at_once() -> None:
    text = message({"training": {"batch_size": 0}, "rkv": {"lambda": -1}, "typo": 1})
    assert all(part in text for part in ("training.batch_size", "rkv.lambda", "unknown key 'typo'"))
    assert text.count(";") >= 2
