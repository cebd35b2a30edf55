"""A word-level tokenizer over the closed vocabulary of the built-in word problems.

tokenizer = build_mini_tokenizer(config, "The answer is:")
tokenizer.tokenize("<<7+5=2>>")  ->  ['<<', '7', '+', '5', '=', '2', '>>']
"""

import re
from typing import TYPE_CHECKING

from kava.config import MiniDataConfig
from kava.data.mini.problems import vocabulary

if TYPE_CHECKING:
    from tokenizers.decoders import Decoder
    from transformers import PreTrainedTokenizerFast

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
COT_SYMBOLS = ("<<", ">>", "+", "-", "*", "=")
_PIECE = r"<<|>>|[^\w\s]"


def build_mini_tokenizer(config: MiniDataConfig, answer_prompt: str) -> "PreTrainedTokenizerFast":
    """Build the tokenizer: one token per word, number, mark and CoT symbol; ids in a fixed order from pad 0, eos 1, unk 2.

    Decoding is the exact inverse of encoding for the generator's questions, steps and answers and for `answer_prompt`.

    Args:
        answer_prompt: its words and marks are added to the vocabulary; every mark (such as ``:``) is a separate token.
    """
    from tokenizers import Regex, Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    prompt_pieces = re.findall(rf"{_PIECE}|\w+", answer_prompt)
    tokens = dict.fromkeys([PAD, EOS, UNK, *COT_SYMBOLS, *vocabulary(config), *prompt_pieces])
    tokenizer = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(_PIECE), "isolated")])
    tokenizer.decoder = _decoder([piece for piece in prompt_pieces if re.fullmatch(_PIECE, piece)], set(vocabulary(config)))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _decoder(prompt_marks: list[str], spaced: set[str]) -> "Decoder":
    """Build a decoder that joins tokens with spaces, except inside ``<<7+5=2>>`` and before prompt marks that problems do not use."""
    from tokenizers import decoders

    inner = [(f" {symbol} ", symbol) for symbol in ("+", "-", "*", "=")]
    outer = [("<< ", "<<"), (" >>", ">>")]
    marks = [(f" {mark}", mark) for mark in dict.fromkeys(prompt_marks) if mark not in spaced and mark not in COT_SYMBOLS]
    replacements = [decoders.Replace(old, new) for old, new in (*inner, *outer, *marks)]
    # The WordPiece decoder is used because it puts a space before every token except the first.
    return decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse(), *replacements])
