"""Tokenizers that lack something or split an answer prompt differently in context: mended where that is safe, else refused."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from kava.data.example import Example
from kava.data.sequences import SPECIAL_TOKENS, SequenceBuilder
from kava.errors import UserError
from kava.model.build import load_tokenizer
from tiny import mini_tokenizer

LETTERS = "0123456789 .:-?=\nTheansweriswo<>+"


def save_tokenizer(directory: Path, merges: list[tuple[str, str]], **named: str) -> str:
    """Characters, and the merges given."""
    words = dict.fromkeys([*LETTERS, *(left + right for left, right in merges), *named.values()])
    vocabulary = {word: index for index, word in enumerate(words)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(vocabulary, merges)), **named).save_pretrained(directory)
    return str(directory)


def test_a_prompt_that_is_split_differently_in_context_is_taken_as_it_stands_there(tmp_path: Path) -> None:
    """':' alone is one token, but ': ' before a number is another: the fixed text is found before numbers, so it ends in that one."""
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, [(":", " ")], eos_token="<eos>"))
    builder = SequenceBuilder(tokenizer, "The answer is:")
    assert tokenizer.convert_ids_to_tokens(builder.prompt_ids) == [*"The answer is", ": "]
    assert tokenizer.convert_ids_to_tokens(builder.encode(Example("a?", (), "72", "x")).answer) == [
        *"The answer is",
        ": ",
        "7",
        "2",
        "<eos>",
    ]


def test_a_number_that_melts_into_the_prompt_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, [("=", " "), ("= ", "7")], eos_token="<eos>"))
    with pytest.raises(UserError, match="end it with a character that this tokenizer keeps apart"):
        SequenceBuilder(tokenizer, "The answer is =")


def test_without_an_end_no_answer_could_end(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, [], pad_token="<pad>"))
    with pytest.raises(UserError, match="no EOS token, so no answer could ever end; set one in its tokenizer_config.json"):
        SequenceBuilder(tokenizer, "The answer is:")


def test_without_a_pad_token_the_end_pads(tmp_path: Path) -> None:
    """Padding is told by masks and never by its id, so any token may stand there."""
    tokenizer: Any = load_tokenizer(save_tokenizer(tmp_path, [], eos_token="<eos>"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id is not None
    encoded = SequenceBuilder(tokenizer, "The answer is:").encode(Example("a?", ("<<1+1=2>>",), "2", "x"))
    assert encoded.answer[-1] == tokenizer.eos_token_id
    assert len(set(tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS))) == 3


def test_half_a_character_is_no_question(tmp_path: Path) -> None:
    builder = SequenceBuilder(load_tokenizer(save_tokenizer(tmp_path, [], eos_token="<eos>")), "The answer is:")
    with pytest.raises(UserError, match=r"'a\\ud800' holds half of a character"):
        builder.question_ids("a\ud800")


def test_an_answer_prompt_without_a_token_is_refused() -> None:
    with pytest.raises(UserError, match="dataset.answer_prompt ' ' is no token"):
        SequenceBuilder(mini_tokenizer(), " ")
