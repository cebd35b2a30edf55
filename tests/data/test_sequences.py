"""Tokenizers that lack something or split an answer prompt differently in context: mended where that is safe, else refused.

The answer's fixed text ends where answers begin to differ, with every kind of tokenizer; the distillation token is its last.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from torch import nn
from transformers import PreTrainedTokenizerFast

from helpers.checks import make_trained
from helpers.families import tokenizer
from helpers.tiny import PROMPT, WEIGHTS, mini_tokenizer, tiny_lm
from kava.checkpoint import KAVA_CONFIG, load_checkpoint, save_checkpoint
from kava.data.collate import Collator
from kava.data.example import Example
from kava.data.sequences import SPECIAL_TOKENS, SequenceBuilder
from kava.errors import UserError
from kava.generate import Reasoner
from kava.methods import METHODS
from kava.model.backbone import Backbone
from kava.model.kava import KavaModel, Settings
from kava.model.tokenizer import load_tokenizer
from kava.runtime.atomic import seal
from kava.train.train import _refuse_foreign

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


ANSWERS = ("0", "7", "18", "42", "365", "1234567", "2.5", "-3", "-12.5")
KINDS = {"gpt2": "The answer is:"} | dict.fromkeys(["llama3", "qwen", "smollm2", "sentencepiece", "metaspace"], "The answer is: ")


def answer_ids(builder: SequenceBuilder, number: str) -> list[int]:
    return builder.encode(Example("Q?", (), number, "x")).answer


@pytest.mark.parametrize(("kind", "text"), KINDS.items())
def test_the_fixed_text_is_the_longest_common_prefix(kind: str, text: str) -> None:
    made = tokenizer(kind)
    builder = SequenceBuilder(made, PROMPT)
    spelled = "".join(made.convert_ids_to_tokens(builder.prompt_ids)).replace("Ġ", " ").replace("▁", " ").lstrip()
    assert spelled == text
    fixed = len(builder.prompt_ids)
    answers = {number: answer_ids(builder, number) for number in ANSWERS}
    assert all(ids[:fixed] == builder.prompt_ids for ids in answers.values())
    # No longer: two answers differ in the token that follows; and what the tokenizer itself writes is what is trained on.
    assert answers["7"][fixed] != answers["42"][fixed]
    for number, ids in answers.items():
        assert made.decode(ids[:-1]) == f"{PROMPT} {number}"
        if not number.startswith("-"):
            assert ids == [*made(f"{PROMPT} {number}", add_special_tokens=False).input_ids, made.eos_token_id]


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_space_the_number_stands_right_behind_the_prompt(kind: str) -> None:
    """As PCCoT writes it: the fixed text ends at ":" whatever the tokenizer."""
    made = tokenizer(kind)
    builder = SequenceBuilder(made, PROMPT, answer_separator="", question_suffix="")
    assert builder.prompt_ids == made(PROMPT, add_special_tokens=False).input_ids
    assert made.decode(answer_ids(builder, "18")[:-1]) == f"{PROMPT}18"
    assert builder.question_ids(" Q? ") == made("Q?").input_ids


def model_for(kind: str) -> KavaModel:
    made = tokenizer(kind)
    causal_lm = tiny_lm(vocabulary=len(made))
    return KavaModel(Backbone(causal_lm, made.convert_tokens_to_ids(SPECIAL_TOKENS)), nn.Identity(), METHODS["kava"], Settings(2, WEIGHTS))


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "sentencepiece"])
def test_the_distillation_token_predicts_the_number(kind: str) -> None:
    """In the batch, for teacher and student: the token after it is the number's first, which differs between the examples."""
    builder = SequenceBuilder(tokenizer(kind), PROMPT)
    examples = [builder.encode(Example("Tom has apples", ("He finds more",) * 2, number, "x")) for number in ("7", "42")]
    collator = Collator(METHODS["kava"], builder.tokenizer.pad_token_id, len(builder.prompt_ids), num_latents=3)
    batch = collator.collate(examples)
    assert batch.teacher is not None
    for suffix in (batch.teacher, batch.student):
        rows = torch.arange(2)
        assert suffix.ids[rows, suffix.distillation_position].tolist() == [builder.prompt_ids[-1]] * 2
        following = suffix.ids[rows, suffix.distillation_position + 1].tolist()
        assert following == [answer_ids(builder, number)[len(builder.prompt_ids)] for number in ("7", "42")]
        assert following[0] != following[1]


@pytest.mark.parametrize("kind", ["gpt2", "llama3"])
@torch.no_grad()
def test_the_fixed_text_is_read_in_one_pass(kind: str) -> None:
    """Question, iterations, fixed text, then a pass per token fed: a space of its own costs none."""
    model = model_for(kind)
    reasoner = Reasoner(model, SequenceBuilder(tokenizer(kind), PROMPT), 3, 2)
    (answer,) = reasoner.generate(["Tom has apples"], max_new_tokens=2)
    assert answer.forward_passes == model.backbone.forward_passes == 1 + 2 + 1 + 1
    prefix, _, _ = reasoner.start([[5, 6]])
    assert prefix.length == 2 + 1 + 3 + 1 + len(reasoner.builder.prompt_ids)


def test_numbers_that_the_tokenizer_cannot_tell_apart_are_refused() -> None:
    words = {word: number for number, word in enumerate(["<unk>", "<eos>", "The", "answer", "is", ":"])}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match="different numbers as the same tokens"):
        SequenceBuilder(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>"), PROMPT)


def test_a_checkpoint_is_asked_with_the_fixed_text_it_was_trained_with(tmp_path: Path) -> None:
    """It is recorded; one that does not record it is older and ended it with the prompt. A run does not go on across the two."""
    trained = make_trained(tmp_path)
    made = tokenizer("llama3")
    longer = [*trained.builder.prompt_ids, 9]
    save_checkpoint(tmp_path / "saved", trained)
    path = tmp_path / "saved" / KAVA_CONFIG
    content = json.loads(path.read_text())
    assert content["prompt_ids"] == trained.builder.prompt_ids

    def rewritten(**changes: Any) -> Any:
        path.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not None}))
        seal(tmp_path / "saved")
        return load_checkpoint(tmp_path / "saved")

    assert rewritten(prompt_ids=longer).builder.prompt_ids == longer
    with pytest.raises(UserError, match="answer's fixed text .* finish it with the version of this program that began it"):
        _refuse_foreign(tmp_path / "saved", trained)
    # What is asked for by name is honoured.
    assert load_checkpoint(tmp_path / "saved", {"dataset.answer_prompt": "The answer is"}).builder.prompt_ids == longer[:3]
    assert rewritten(prompt_ids=None).builder.prompt_ids == trained.builder.prompt_ids
    _refuse_foreign(tmp_path / "saved", trained)
    for wrong in ([], ["a"], [-1], [10**6], "text"):
        with pytest.raises(UserError, match="prompt_ids are no tokens of its tokenizer"):
            rewritten(prompt_ids=wrong)
    older = made(PROMPT, add_special_tokens=False).input_ids
    assert SequenceBuilder(made, PROMPT, prompt_ids=older).prompt_ids == older != SequenceBuilder(made, PROMPT).prompt_ids
