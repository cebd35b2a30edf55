"""How long a sequence may be, and what limits it."""

import pytest
from transformers import AutoConfig

from helpers.tiny import tiny_lm
from kava.cache.limits import entry_limit, layers_without_cache


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", None),
        ("yarn", None),
        ("gpt2", (256, "its table of learned positions")),
        ("opt", (256, "its table of learned positions")),
        ("gpt_oss", (256, "the sliding window of its attention")),
        ("longrope", (32, "its longrope rotary positions")),
        ("dynamic", (32, "its dynamic rotary positions")),
    ],
)
def test_the_limit_and_its_reason(kind: str, expected: tuple[int, str] | None) -> None:
    found = entry_limit(tiny_lm(kind, "eager"))
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found[0] == expected[0]
        assert found[1].startswith(expected[1])


def test_layers_that_keep_no_entry_per_token_are_named() -> None:
    assert layers_without_cache(AutoConfig.for_model("llama", num_hidden_layers=2)) == []
    assert layers_without_cache(AutoConfig.for_model("mistral", num_hidden_layers=2, sliding_window=8)) == []
    recurrent = layers_without_cache(AutoConfig.for_model("qwen3_next", num_hidden_layers=4))
    assert recurrent
    assert not {"DynamicLayer", "DynamicSlidingWindowLayer"} & set(recurrent)
