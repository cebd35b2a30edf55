"""The weights that a resumed run starts from are the checkpoint's, all of them, or there is a sentence."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.checks import make_trained
from kava.checkpoint import fitting, load_checkpoint, save_checkpoint
from kava.errors import UserError
from kava.runtime.atomic import seal
from kava.train.resume import load_weights


@pytest.mark.parametrize(("kind", "lora"), [("llama", True), ("llama", False), ("mixtral", False)])
def test_weights_are_those_of_the_checkpoint(tmp_path: Path, kind: str, lora: bool) -> None:
    """transformers writes Mixtral's experts one by one, and keeps them in one tensor."""
    trained = make_trained(tmp_path, kind, lora=lora)
    save_checkpoint(tmp_path / "saved", trained)
    expected = copy.deepcopy(trained.model.state_dict())
    with torch.no_grad():
        for parameter in trained.model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    load_weights(tmp_path / "saved", trained)
    assert all(torch.equal(value, expected[name]) for name, value in trained.model.state_dict().items())


@pytest.mark.parametrize(
    ("lora", "name", "other", "sentence"),
    [
        (True, "layers.0.self_attn", "layers.0.attention", "saved does not fit .*lacks .*layers.0.self_attn.q_proj.lora_A"),
        (False, "layers.0.self_attn", "layers.0.attention", "saved' has no model.layers.0.self_attn.q_proj.weight of the shape"),
    ],
)
def test_weights_of_other_names_are_refused(tmp_path: Path, lora: bool, name: str, other: str, sentence: str) -> None:
    """A model with some of its weights as they were before training once passed for the trained one."""
    trained = make_trained(tmp_path, lora=lora)
    save_checkpoint(tmp_path / "saved", trained)
    file = tmp_path / "saved" / ("adapter_model.safetensors" if lora else "model.safetensors")
    save_file({key.replace(name, other, 1): value for key, value in load_file(file).items()}, file, metadata={"format": "pt"})
    seal(tmp_path / "saved")
    with pytest.raises(UserError, match=sentence):
        load_checkpoint(tmp_path / "saved")
    with pytest.raises(UserError, match=sentence), fitting(tmp_path / "saved"):
        load_weights(tmp_path / "saved", trained)


def test_an_adapter_with_more_weights_than_the_model_is_refused(tmp_path: Path) -> None:
    trained = make_trained(tmp_path)
    save_checkpoint(tmp_path / "saved", trained)
    file = tmp_path / "saved" / "adapter_model.safetensors"
    weights = load_file(file)
    more = {key.replace("layers.0.", "layers.9."): value.clone() for key, value in weights.items() if "layers.0." in key}
    save_file(weights | more, file)
    seal(tmp_path / "saved")
    with pytest.raises(UserError, match=r"saved does not fit .*the model has no .*layers.9.self_attn"):
        load_checkpoint(tmp_path / "saved")
