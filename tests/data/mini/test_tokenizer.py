"""The word-level tokenizer of the built-in word problems."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from kava.config import MiniDataConfig
from kava.data.mini.problems import SPLITS, generate, vocabulary
from kava.data.mini.tokenizer import COT_SYMBOLS, build_mini_tokenizer

CONFIG = MiniDataConfig(num_train=100, num_eval=30)
PROMPT = "The answer is:"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_mini_tokenizer(CONFIG, PROMPT)


def test_an_equation_is_seven_tokens_and_the_prompt_ends_in_its_mark(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.tokenize("<<7+15=2>>") == ["<<", "7", "+", "15", "=", "2", ">>"]
    assert tokenizer.tokenize(PROMPT) == ["The", "answer", "is", ":"]


def test_ids_are_fixed_and_nothing_is_added(tokenizer: PreTrainedTokenizerBase) -> None:
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert len(tokenizer) == 3 + len(COT_SYMBOLS) + len(vocabulary(CONFIG)) + len({"answer", ":"})
    encoded = tokenizer("Tom has 7 apples .")
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert len(encoded["input_ids"]) == 5


@pytest.mark.parametrize("cot_type", ["equation", "natural_language"])
@pytest.mark.parametrize("split", SPLITS)
def test_every_split_goes_there_and_back(tokenizer: PreTrainedTokenizerBase, split: str, cot_type: str) -> None:
    for example in generate(split, CONFIG, cot_type, 30):
        text = f"{example.question} {' '.join(example.steps)} {PROMPT} {example.answer}"
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_an_unknown_word_is_unk(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer("zebra")["input_ids"] == [tokenizer.unk_token_id]
    assert tokenizer("30")["input_ids"] == [tokenizer.unk_token_id]


def test_saved_and_loaded_it_does_the_same(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.add_tokens(["<bot>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = f"Tom has 7 apples . <bot> <<7+15=2>> {PROMPT} 2 <eos>"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == f"Tom has 7 apples . <<7+15=2>> {PROMPT} 2"
    assert loaded.model_input_names == ["input_ids", "attention_mask"]
    assert (loaded.pad_token, loaded.eos_token, loaded.unk_token) == ("<pad>", "<eos>", "<unk>")


@pytest.mark.parametrize(("prompt", "last"), [("####", "#"), ("Answer =", "="), ("so the answer", "answer")])
def test_other_prompts(prompt: str, last: str) -> None:
    tokenizer = build_mini_tokenizer(CONFIG, prompt)
    ids = tokenizer(prompt)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.convert_ids_to_tokens(ids[-1:]) == [last]
