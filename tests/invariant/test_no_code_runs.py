"""What one was sent runs no code: models with code of their own, pickled weights, checkpoints that ask to be trusted."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers.checks import make_trained
from kava.checkpoint import KAVA_CONFIG, load_checkpoint, save_checkpoint
from kava.config import Config
from kava.errors import UserError
from kava.model.build import load_base
from kava.runtime.atomic import seal

CODE = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedModel
Path("owned").touch()
class OddConfig(PretrainedConfig):
    model_type = "odd"
class OddModel(PreTrainedModel):
    config_class = OddConfig
"""


class Evil:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return (Path.touch, (Path("owned"),))


@pytest.fixture(autouse=True)
def _nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("owned").exists()


def bring_code(directory: Path) -> None:
    """Turn a model's directory into one whose classes come with it."""
    (directory / "odd.py").write_text(CODE)
    content = json.loads((directory / "config.json").read_text())
    own = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddModel"}
    (directory / "config.json").write_text(json.dumps(content | {"model_type": "odd", "auto_map": own}))


def test_a_model_with_code_of_its_own_waits_to_be_trusted(tmp_path: Path) -> None:
    make_trained(tmp_path)
    bring_code(tmp_path / "base")
    with pytest.raises(UserError, match="needs code from its repository; if you trust it, set model.trust_remote_code to true"):
        load_base(str(tmp_path / "base"), Config())


def test_a_checkpoint_cannot_ask_to_be_trusted(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "saved", make_trained(tmp_path))
    path = tmp_path / "saved" / KAVA_CONFIG
    content = json.loads(path.read_text())
    content["config"]["model"]["trust_remote_code"] = True
    path.write_text(json.dumps(content))
    seal(tmp_path / "saved")
    bring_code(tmp_path / "base")
    with pytest.raises(UserError, match="needs code from its repository"):
        load_checkpoint(tmp_path / "saved")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_are_not_read(tmp_path: Path, zipped: bool) -> None:
    make_trained(tmp_path)
    weights = tmp_path / "base" / "pytorch_model.bin"
    (tmp_path / "base" / "model.safetensors").unlink()
    if zipped:
        torch.save({"x": Evil()}, weights)
    else:
        weights.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_base(str(tmp_path / "base"), Config())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_adapter_is_not_read(tmp_path: Path, zipped: bool) -> None:
    save_checkpoint(tmp_path / "saved", make_trained(tmp_path))
    (tmp_path / "saved" / "adapter_model.safetensors").unlink()
    if zipped:
        torch.save({"x": Evil()}, tmp_path / "saved" / "adapter_model.bin")
    else:
        (tmp_path / "saved" / "adapter_model.bin").write_bytes(pickle.dumps(Evil()))
    seal(tmp_path / "saved")
    with pytest.raises(UserError, match="has no adapter_model.safetensors; other forms of weights are not loaded"):
        load_checkpoint(tmp_path / "saved")
