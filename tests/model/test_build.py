"""A base model as a run loads it: what its weights are stored in, and what a missing package says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny import HAS_FLASH, SPECIAL_IDS, lora_config, tiny_lm
from kava.config import Config, build_config
from kava.errors import UserError
from kava.model.build import add_lora, load_base, stored_dtype


def test_a_frozen_base_is_stored_in_what_a_gpu_computes_in_unless_told_otherwise() -> None:
    def stored(on_gpu: bool, **overrides: Any) -> torch.dtype:
        return stored_dtype(build_config({}, "a test", overrides), on_gpu)

    assert stored(on_gpu=True) == torch.bfloat16
    assert stored(on_gpu=False) == torch.float32
    for other in (
        {"lora.enabled": False},
        {"system.mixed_precision": "no"},
        {"system.mixed_precision": "fp16"},
        {"model.dtype": "float32"},
    ):
        assert stored(on_gpu=True, **other) == torch.float32
    assert stored(on_gpu=False, **{"model.dtype": "bfloat16"}) == torch.bfloat16
    # A configuration from before there was a choice, and what it chose on a CPU, are the same run.
    assert build_config({}, "a test", {"model.dtype": "float32"}).fingerprint() == build_config({}, "a test").fingerprint()


@pytest.mark.skipif(HAS_FLASH, reason="flash-attn is installed")
def test_flash_attention_without_its_package_is_refused() -> None:
    with pytest.raises(
        UserError, match="flash_attention_2 needs the package flash-attn.* pip install 'kava-latent\\[flash\\]', or set it to sdpa"
    ):
        load_base("nowhere", build_config({}, "a test", {"model.attn_implementation": "flash_attention_2"}))


@pytest.mark.parametrize(("tied", "target", "what"), [(False, "lm_head", "output head"), (True, "embed_tokens", "embeddings")])
def test_an_adapter_on_embeddings_or_the_head_is_refused(tied: bool, target: str, what: str) -> None:
    config = lora_config(**{"lora.target_modules": ["q_proj", target]})
    with pytest.raises(UserError, match=f"lora.target_modules names {target}, the {what} of this model"):
        add_lora(tiny_lm(tied=tied), SPECIAL_IDS, config)


@pytest.mark.parametrize(
    ("change", "name"), [({"num_hidden_layers": 4}, "layers.3.self_attn.q_proj"), ({"hidden_size": 64}, "embed_tokens")]
)
def test_weights_that_the_files_lack_are_not_drawn_at_random(tmp_path: Path, change: dict[str, int], name: str) -> None:
    tiny_lm().save_pretrained(tmp_path)
    load_base(str(tmp_path), Config())
    shape = tmp_path / "config.json"
    shape.write_text(json.dumps(json.loads(shape.read_text()) | change))
    with pytest.raises(
        UserError, match=rf"model '.*' has no model.{name}.weight of the shape that its config.json says: copy its files again"
    ):
        load_base(str(tmp_path), Config())
