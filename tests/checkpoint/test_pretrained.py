"""Checkpoints as the ecosystem reads them: by `from_pretrained`, and as an adapter of peft."""

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

from helpers.checks import make_trained, outputs
from helpers.tiny import assert_close, mini_examples
from kava.api import Model
from kava.checkpoint import ADAPTER, KAVA_CONFIG, PROJECTION, save_checkpoint
from kava.checkpoint.convert import import_checkpoint
from kava.checkpoint.publish import merge
from kava.errors import UserError
from kava.model.smollm2 import smollm2_directory
from kava.runtime.atomic import verify

QUESTIONS = [example.question for example in mini_examples(3)]


def test_a_new_token_that_the_model_writes_is_read_with_its_trained_row(tmp_path: Path) -> None:
    """A checkpoint does not hold the base's own rows of these tokens: they are drawn anew whenever it is loaded."""
    trained = make_trained(tmp_path, "gpt2")
    backbone = trained.model.backbone
    written = backbone.embed_generated(torch.stack([backbone.special_ids, torch.tensor([3, 4, 5])]))
    assert torch.equal(written[0], backbone.special_embeddings())
    assert torch.equal(written[1], backbone.embed(torch.tensor([[3, 4, 5]]))[0])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_from_pretrained_and_back(tmp_path: Path, kind: str) -> None:
    trained = make_trained(tmp_path, kind)
    save_checkpoint(tmp_path / "run" / "saved", trained)
    model = Model.from_pretrained(tmp_path / "run" / "saved", overrides={"evaluation.max_new_tokens": 5})
    answers = model.answer(QUESTIONS)
    assert [answer.generated_tokens <= 5 for answer in answers] == [True] * 3
    model.save_pretrained(tmp_path / "again", name="me/kava")
    again = Model.from_pretrained(tmp_path / "again")
    assert again.answer(QUESTIONS, max_new_tokens=5) == answers
    for value, before in zip(outputs(again.trained), outputs(trained), strict=True):
        assert torch.equal(value, before)


def test_the_directory_is_a_normal_peft_adapter(tmp_path: Path) -> None:
    trained = make_trained(tmp_path, tied=True)
    save_checkpoint(tmp_path / "saved", trained)
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names >= {"adapter_model.safetensors", ADAPTER, PROJECTION, KAVA_CONFIG, "tokenizer.json", "README.md"}
    plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    ids = tokenizer(QUESTIONS[0] + "<bot><latent><eot>", return_tensors="pt").input_ids
    with torch.no_grad():
        assert_close(plain(input_ids=ids).logits, trained.model.backbone.model(input_ids=ids).logits, 1e-6)


def test_what_is_nowhere_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("nobody/nothing", "not/a/name"):
        with pytest.raises(UserError, match=f"'{name}' is not a checkpoint: "):
            Model.from_pretrained(name)


def test_a_directory_of_other_files_is_not_replaced(tmp_path: Path) -> None:
    """`kava merge X .` once deleted whatever lay there; refused before anything is loaded. An older checkpoint is replaced."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "thesis.txt").write_text("mine")
    for write in (merge, import_checkpoint):
        with pytest.raises(UserError, match=r"place holds other files, which a checkpoint there would replace; choose another directory"):
            write(tmp_path / "nowhere", place)
        with pytest.raises(UserError, match="thesis.txt is a file; choose another directory"):
            write(tmp_path / "nowhere", place / "thesis.txt")
    with pytest.raises(UserError, match="place holds other files"):
        smollm2_directory(place)
    model = Model(make_trained(tmp_path))
    with pytest.raises(UserError, match="place holds other files"):
        model.save_pretrained(place)
    assert {path.name: path.read_text() for path in place.iterdir()} == {"thesis.txt": "mine"}
    for _ in range(2):
        model.save_pretrained(tmp_path / "new")
    assert verify(tmp_path / "new") is None
