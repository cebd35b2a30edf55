"""A tokenizer that contradicts its model's configuration on where a text begins or ends: mended or refused, and named."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, GenerationConfig

from helpers.families import plain_tokenizer
from kava.errors import UserError
from kava.model.tokenizer import agree_with_model, load_tokenizer


def base(place: Path, *, generation: Any = None, bos: str | None = None, **ends: Any) -> tuple[str, Any]:
    """A base model's tokenizer and configurations; `<eos>` is what the tokenizer says."""
    made = plain_tokenizer("llama3")
    if bos is not None:
        from tokenizers.processors import TemplateProcessing

        made.add_special_tokens({"bos_token": bos})
        made.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, made.bos_token_id)])
    made.save_pretrained(place)
    AutoConfig.for_model("llama", **ends).save_pretrained(place)
    if generation is not None:
        GenerationConfig(eos_token_id=generation).save_pretrained(place)
    return str(place), load_tokenizer(str(place))


def test_the_configuration_s_end_is_used_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory, tokenizer = base(tmp_path, eos_token_id=5)
    theirs = tokenizer.convert_ids_to_tokens(5)
    agree_with_model(tokenizer, directory)
    assert (tokenizer.eos_token_id, tokenizer.eos_token) == (5, theirs)
    assert f"ends a text with '<eos>', its configuration with {theirs!r}: the configuration's is used" in capsys.readouterr().err
    # What is saved with a checkpoint is the mended one.
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(str(tmp_path / "saved")).eos_token_id == 5


@pytest.mark.parametrize("where", ["one", "among several", "in the generation configuration", "nowhere"])
def test_one_of_the_ends_it_names_is_enough(tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As Llama-3's instruct models have them: several in one configuration, another in the other."""
    end = plain_tokenizer("llama3").eos_token_id
    settings: dict[str, Any] = {
        "one": {"eos_token_id": end},
        "among several": {"eos_token_id": [3, end]},
        "in the generation configuration": {"eos_token_id": 3, "generation": [4, end]},
        "nowhere": {"eos_token_id": None},
    }[where]
    directory, tokenizer = base(tmp_path, **settings)
    agree_with_model(tokenizer, directory)
    assert tokenizer.eos_token_id == end
    assert capsys.readouterr().err == ""


def test_what_cannot_be_mended_is_refused(tmp_path: Path) -> None:
    directory, tokenizer = base(tmp_path / "end", eos_token_id=100_000)
    with pytest.raises(UserError, match="ends a text with token 100000, which its tokenizer does not have"):
        agree_with_model(tokenizer, directory)
    end = tokenizer.eos_token_id
    directory, tokenizer = base(tmp_path / "begin", eos_token_id=end, bos_token_id=7, bos="<bos>")
    with pytest.raises(UserError, match=r"begins a text with '<bos>', its configuration with .*; set bos_token"):
        agree_with_model(tokenizer, directory)
    directory, tokenizer = base(tmp_path / "unused", eos_token_id=end, bos_token_id=7)
    agree_with_model(tokenizer, directory)
