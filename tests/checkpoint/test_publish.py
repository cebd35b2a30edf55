"""Checkpoints for others: merged into plain models, and sent to the hub (a folder is what is uploaded)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM

from helpers.checks import make_trained, outputs
from helpers.tiny import assert_close, mini_examples
from kava.api import Model
from kava.checkpoint import ADAPTER, KAVA_CONFIG, PROJECTION, load_checkpoint, save_checkpoint
from kava.checkpoint.publish import merge
from kava.errors import UserError
from kava.runtime.atomic import verify

QUESTIONS = [example.question for example in mini_examples(3)]


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("llama", False), ("gpt2", True)])
def test_a_merged_model_is_a_plain_one_and_a_checkpoint(tmp_path: Path, kind: str, tied: bool) -> None:
    trained = make_trained(tmp_path, kind, tied=tied)
    save_checkpoint(tmp_path / "saved", trained)
    merge(tmp_path / "saved", tmp_path / "merged")
    assert not (tmp_path / "merged" / ADAPTER).exists()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert type(plain).__module__.startswith("transformers.")
    ids = trained.tokenizer(QUESTIONS[0] + "<bot><latent><eot>", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = trained.model.backbone.model(input_ids=ids).logits
        assert_close(plain(input_ids=ids).logits, expected, 1e-5)
    for value, before in zip(outputs(load_checkpoint(tmp_path / "merged")), outputs(trained), strict=True):
        assert_close(value, before, 1e-4)
    with pytest.raises(UserError, match="no adapter to merge"):
        merge(tmp_path / "merged", tmp_path / "twice")


def test_a_kill_while_the_card_is_written_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(make_trained(tmp_path))
    model.save_pretrained(tmp_path / "saved", base="org/base")
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}

    def kill(*arguments: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("kava.checkpoint.publish.render_card", kill)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path / "saved", base="org/other")
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before


def test_pushing_uploads_that_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub itself is out of reach of a test: what would be sent is looked at in its place."""
    save_checkpoint(tmp_path / "saved", make_trained(tmp_path))
    sent: dict[str, Any] = {}

    def create_repo(self: HfApi, name: str, **options: Any) -> None:
        sent["repo"] = (name, options)

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: str, **commit: Any) -> str:
        sent["files"] = {path.name for path in Path(folder_path).iterdir()}
        assert verify(folder_path) is None
        return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    model = Model.from_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match="on this machine alone"):
        model.push_to_hub("me/kava")
    assert model.push_to_hub("me/kava", base="org/base", private=True) == "https://huggingface.co/me/kava"
    assert sent["repo"] == ("me/kava", {"private": True, "exist_ok": True})
    assert sent["files"] >= {ADAPTER, PROJECTION, KAVA_CONFIG, "README.md", "tokenizer.json"}


def test_a_name_that_is_none_and_a_hub_that_does_not_respond_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(make_trained(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for name in ("bad name!!", "me/kava"):
        with pytest.raises(UserError, match=f"'{name}' could not be pushed to the hub .* check the name .owner/model. and the connection"):
            model.push_to_hub(name, base="org/base", token="hf_x")
