"""The configuration: its defaults, and which values it takes."""

from typing import Any

import pytest

from kava.config import Config, build_config
from kava.errors import UserError


def message(content: dict[str, Any], overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        build_config(content, "here.yaml", overrides)
    return str(caught.value)


def test_defaults_are_the_papers() -> None:
    config = Config()
    assert (config.method, config.latent.num_tokens, config.latent.num_iterations) == ("kava", 24, 3)
    assert (config.loss.alpha1_codi, config.loss.alpha2_kv, config.rkv.lambda_) == (10.0, 1.0, 0.1)
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (128, 32, 0.1)
    assert (config.training.learning_rate, config.training.batch_size, config.training.max_grad_norm) == (8e-4, 128, 2.0)


def test_values_at_the_edges_are_taken() -> None:
    content = {
        "method": "no_cot",
        "latent": {"num_tokens": 0},
        "lora": {"enabled": False, "r": 0},
        "rkv": {"lambda": 1},
        "training": {"seed": 0},
    }
    config = build_config(content, "here.yaml")
    assert (config.latent.num_tokens, config.lora.r, config.rkv.lambda_, config.training.seed) == (0, 0, 1.0, 0)


def test_changing_one_config_leaves_the_defaults_alone() -> None:
    config = Config()
    config.training.seed = 7
    config.evaluation.datasets["own"] = "/data"
    assert Config().training.seed == 42
    assert "own" not in Config().evaluation.datasets


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("x; rm -rf ~", "'x; rm -rf ~' names files: use letters, digits"),
        ("-x", "'-x' names files"),
        ("../x", "'../x' names files"),
    ],
)
def test_an_evaluation_set_has_a_name_that_is_safe_in_file_names(name: str, part: str) -> None:
    assert part in message({"evaluation": {"datasets": {name: "f.json"}}})
