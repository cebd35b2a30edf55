"""Tokenizers of each family, as real ones split text: byte-level BPE with and without a space token of its own, SentencePiece."""

from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from kava.data.sequences import SPECIAL_TOKENS

# As their tokenizer.json files have them.
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
WORDS = ["Tom has apples", "He finds more apples", "The answer is:", "How many apples does Tom have?", "The answer is: - the cost"] * 3
NUMBERS = [f"The answer is: {number}" for number in range(100)]


@cache
def tokenizer(kind: str) -> Any:
    """One of each family with the new tokens; the same object each time."""
    made = plain_tokenizer(kind)
    made.add_tokens(SPECIAL_TOKENS, special_tokens=True)
    return made


def plain_tokenizer(kind: str) -> Any:
    """One of each family as its base model has it, its merges learned from a few sentences."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind in ("gpt2", "smollm2"))
    backend = Tokenizer(BPE(unk_token=None, byte_fallback=False))
    if kind == "sentencepiece":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    elif kind == "metaspace":
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True)])
        backend.decoder = decoders.Metaspace()
    else:
        split = {
            "llama3": [pre_tokenizers.Split(Regex(LLAMA3), "isolated")],
            "qwen": [pre_tokenizers.Split(Regex(QWEN), "isolated")],
            "smollm2": [pre_tokenizers.Digits(individual_digits=True)],
            "gpt2": [],
        }[kind]
        backend.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
        backend.decoder = decoders.ByteLevel()
    alphabet = [*"0123456789.-▁"] if kind in ("sentencepiece", "metaspace") else pre_tokenizers.ByteLevel.alphabet()
    # SentencePiece's models of this kind keep digits apart: none is seen beside another.
    texts = WORDS if kind == "sentencepiece" else WORDS + NUMBERS
    backend.train_from_iterator(texts, BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
