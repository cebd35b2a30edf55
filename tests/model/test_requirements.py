"""A setting that this machine cannot serve is refused before the base model is made, which takes minutes."""

from pathlib import Path

import pytest

from kava.config import config_path, load_config
from kava.errors import UserError
from kava.train.train import train


@pytest.mark.parametrize(
    ("setting", "value", "missing"),
    [
        ("model.attn_implementation", "flash_attention_2", "flash-attn"),
        ("model.quantization", "4bit", "bitsandbytes"),
        ("system.fused_cross_entropy", "true", "liger-kernel|a GPU"),
        ("system.compile", "true", r"a C\+\+ compiler"),
    ],
)
def test_what_is_missing_is_said_before_the_base_is_pretrained(
    setting: str, value: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAVA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("kava.runtime.optional_packages.find_spec", lambda module: None)
    config = load_config(config_path("mini"), {"lora.enabled": True, setting: value})
    with pytest.raises(UserError, match=f"{setting}.* needs ({missing}|the package ({missing}))"):
        train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()
