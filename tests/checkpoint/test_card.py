"""The model card of a checkpoint: filled in, and written again when results come in."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.checks import make_trained
from helpers.tiny import assert_close, lora_config, mini_examples
from kava.api import Model
from kava.checkpoint import ADAPTER, KAVA_CONFIG, save_checkpoint
from kava.checkpoint.card import render_card
from kava.checkpoint.publish import refresh_card
from kava.errors import UserError
from kava.results import CheckpointInfo, DataInfo, Metrics, Result, RunInfo, checkpoint_hash, write_result
from kava.runtime.atomic import discard, verify

QUESTIONS = [example.question for example in mini_examples(3)]


def a_result(trained: Any) -> Result:
    config = trained.config
    return Result(
        dataset="gsm8k",
        metrics=Metrics(
            accuracy=0.75, accuracy_ci95=[0.7, 0.8], correct=3, total=4, forward_passes=6.5, generated_tokens=2.0, seconds_per_question=0.1
        ),
        run=RunInfo(method="kava", seed=42, config=config.to_dict(), config_fingerprint=config.fingerprint(), model="m"),
        data=DataInfo(source="openai/gsm8k", split="test", fingerprint="f", rows=4),
        provenance={},
    )


def test_every_checkpoint_has_a_card_that_is_filled_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = make_trained(tmp_path)
    run = tmp_path / "run"
    save_checkpoint(run / "saved", trained)
    card = (run / "saved" / "README.md").read_text()
    assert "More Information Needed" not in card
    assert "| validation, which chose this checkpoint | 25.0 % |" in card
    mine = CheckpointInfo(path="run/saved", manifest=checkpoint_hash(run / "saved"))
    other = CheckpointInfo(path="run/other", manifest="0123456789abcdef")
    write_result(run / "results_gsm8k.yaml", a_result(trained).model_copy(update={"checkpoint": mine}))
    write_result(run / "results_svamp.yaml", a_result(trained).model_copy(update={"checkpoint": other, "dataset": "svamp"}))
    base = "meta-llama/Llama-3.2-1B-Instruct"
    Model.from_pretrained(run / "saved").save_pretrained(tmp_path / "out", base=base, name="me/kava")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| gsm8k | 75.0 % | 70.0 to 80.0 | 4 | 6.5 |" in card
    assert "svamp |" not in card
    assert "results_svamp.yaml was measured on another checkpoint (run/other)" in capsys.readouterr().err
    assert 'kava.load("me/kava")' in card
    assert "| `latent.num_tokens` | 4 |" in card
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found is not None
    header = yaml.safe_load(found[1])
    assert (header["base_model"], header["library_name"]) == (base, "peft")
    result = header["model-index"][0]["results"][0]
    assert result["metrics"] == [{"type": "accuracy", "value": 75.0, "verified": False}] or result["metrics"] == [
        {"type": "accuracy", "value": 75.0}
    ]
    assert result["dataset"] == {"name": "gsm8k", "type": "gsm8k", "split": "test"}
    assert header["tags"] == ["kava", "latent-reasoning"]
    assert (header["license"], header["license_link"]) == ("other", f"https://huggingface.co/{base}")
    assert json.loads((tmp_path / "out" / ADAPTER).read_text())["base_model_name_or_path"] == base
    assert json.loads((tmp_path / "out" / KAVA_CONFIG).read_text())["base"] == base
    assert verify(tmp_path / "out") is None


def test_a_card_is_written_again_when_results_come_in(tmp_path: Path) -> None:
    """The checkpoint stays the one that was measured: its hash and its manifest do not know the card."""
    trained = make_trained(tmp_path)
    run = tmp_path / "run"
    save_checkpoint(run / "best_checkpoint", trained)
    before, card = checkpoint_hash(run / "best_checkpoint"), (run / "best_checkpoint" / "README.md").read_text()
    mine = CheckpointInfo(path="run/best_checkpoint", manifest=before)
    write_result(run / "results_gsm8k.yaml", a_result(trained).model_copy(update={"checkpoint": mine}))
    refresh_card(run / "best_checkpoint")
    after = (run / "best_checkpoint" / "README.md").read_text()
    assert "| gsm8k | 75.0 % | 70.0 to 80.0 | 4 | 6.5 |" in after
    assert set(card.splitlines()) - set(after.splitlines()) <= {"| validation, which chose this checkpoint | 25.0 % |", ""}
    assert (verify(run / "best_checkpoint"), checkpoint_hash(run / "best_checkpoint")) == (None, before)
    save_checkpoint(run / "best_checkpoint", trained)  # a better one takes its place, card and all
    assert (run / "best_checkpoint" / "README.md").read_text() == card
    (run / "best_checkpoint" / "README.md").chmod(0o400)
    discard(run / "best_checkpoint")
    assert not (run / "best_checkpoint").exists()


def test_a_card_holds_what_its_model_answers_and_not_what_other_latents_gave(tmp_path: Path) -> None:
    trained = make_trained(tmp_path)
    run = tmp_path / "run"
    save_checkpoint(run / "best_checkpoint", trained)
    mine = CheckpointInfo(path="run/best_checkpoint", manifest=checkpoint_hash(run / "best_checkpoint"))
    result = a_result(trained).model_copy(update={"checkpoint": mine})
    write_result(run / "results_gsm8k.yaml", result)
    for name, section, change in (("written", "evaluation", {"use_latent": False}), ("more", "latent", {"num_iterations": 6})):
        config = {**result.run.config, section: {**result.run.config[section], **change}}
        other = result.model_copy(update={"dataset": name, "run": result.run.model_copy(update={"config": config})})
        write_result(run / f"results_{name}.yaml", other)
    refresh_card(run / "best_checkpoint")
    card = (run / "best_checkpoint" / "README.md").read_text()
    assert "| gsm8k |" in card
    assert "| written |" not in card
    assert "| more |" not in card
    assert [one.dataset for one in Model.from_pretrained(run).results] == ["gsm8k"]
    assert [one.dataset for one in Model.from_pretrained(run, overrides={"latent.num_iterations": 6}).results] == ["more"]


def test_the_card_s_code_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(tmp_path / "saved", make_trained(tmp_path))
    model = Model.from_pretrained(tmp_path / "saved", overrides={"evaluation.max_new_tokens": 3})
    model.save_pretrained(tmp_path / "out", name=str(tmp_path / "out"))
    found = re.search(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    assert found is not None
    exec(found[1], {})
    assert capsys.readouterr().out.endswith("\n")


def test_the_card_s_way_to_plain_peft(tmp_path: Path) -> None:
    trained = make_trained(tmp_path)
    save_checkpoint(tmp_path / "saved", trained)
    Model.from_pretrained(tmp_path / "saved", device="cpu").save_pretrained(tmp_path / "out", name=str(tmp_path / "out"))
    code = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)[1]
    names: dict[str, Any] = {}
    exec(code, names)
    ids = trained.tokenizer(QUESTIONS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = names["model"].eval()(input_ids=ids).logits[..., : len(trained.tokenizer) - 3]
        ours = trained.model.eval().backbone.model(input_ids=ids).logits[..., : len(trained.tokenizer) - 3]
    assert_close(theirs, ours, 1e-5)


def test_the_base_s_licence_is_the_card_s(tmp_path: Path) -> None:
    trained = make_trained(tmp_path)
    Path(trained.base, "README.md").write_text("---\nlicense: llama3.2\ntags: [x]\n---\n# Base\n")
    save_checkpoint(tmp_path / "saved", trained)
    assert "\nlicense: llama3.2\n" in (tmp_path / "saved" / "README.md").read_text()


def test_a_directory_that_is_the_base_is_no_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`models/llama` could be either, so a checkpoint that is loaded with it names the directory in full."""
    save_checkpoint(tmp_path / "saved", make_trained(tmp_path))
    for relative in ("models/llama", "data/models/llama"):
        shutil.copytree(tmp_path / "base", tmp_path / relative)
        monkeypatch.chdir(tmp_path)
        model = Model.from_pretrained(tmp_path / "saved", overrides={"model.name": relative})
        assert model.trained.base == str(tmp_path / relative)
        with pytest.raises(UserError, match="llama' is on this machine alone"):
            model.push_to_hub("me/kava")
        shutil.rmtree(tmp_path / relative)
        model.save_pretrained(tmp_path / "again")
        assert "huggingface.co/" not in (tmp_path / "again" / "README.md").read_text().partition("# kava on llama")[0]
    # As earlier versions recorded it, seen from another directory.
    save_checkpoint(tmp_path / "saved", replace(model.trained, base="data/models/llama"))
    refresh_card(tmp_path / "saved")
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match="is no longer in data/models/llama: say where it is with --model.name"):
        Model.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("name", "source", "linked"), [("rows/train.jsonl", "/data/rows/train.jsonl", False), ("a/b", "a/b@0 (train)", True)]
)
def test_a_file_of_rows_is_no_data_set_on_the_hub(name: str, source: str, linked: bool) -> None:
    config = lora_config(**{"dataset.name": name})
    card = render_card(config, "a/base", {"data": {"source": source, "rows": 1, "fingerprint": "f"}})
    assert (f"\ndatasets:\n- {name}\n" in card) is linked


@pytest.mark.parametrize("card", [b"---\ntags: [a, b\n---\n", b"---\nmodel: a: b\n---\n", b"---\n- a\n---\n", b"---\nlicense: \xe9\n---\n"])
def test_a_broken_card_of_the_base_costs_no_checkpoint(tmp_path: Path, card: bytes) -> None:
    trained = make_trained(tmp_path)
    Path(trained.base, "README.md").write_bytes(card)
    save_checkpoint(tmp_path / "saved", trained)
    assert "\nlicense: other\n" in (tmp_path / "saved" / "README.md").read_text()
