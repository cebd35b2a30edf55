"""The pieces of a text that is written token by token are the text, also where a character has several tokens."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from kava.api.stable_text import UNFINISHED, StableText


@pytest.mark.parametrize("by_fallback", [False, True])
@pytest.mark.parametrize("text", ["答案：5", "ok 🙂 done 🙂", "é", f"5 {UNFINISHED}", f"{UNFINISHED}{UNFINISHED} 5", "好"])
def test_characters_of_several_tokens_are_shown_whole(text: str, by_fallback: bool) -> None:
    """One token a byte, as byte-level BPE without merges and as SentencePiece's fallback decode it."""
    if by_fallback:
        ids, decoder = list(text.encode()), Tokenizer(models.BPE(vocab={f"<0x{byte:02X}>": byte for byte in range(256)}, merges=[]))
        decoder.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        decoder = Tokenizer(models.BPE(vocab={character: number for number, character in enumerate(alphabet)}, merges=[]))
        decoder.pre_tokenizer, decoder.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        ids = decoder.encode(text).ids
    stable = StableText()
    pieces = [stable.of(decoder.decode(ids[:count])) for count in range(1, len(ids) + 1)]
    assert "".join([*pieces, stable.rest(text)]) == text


def test_a_finished_character_is_shown_with_the_next_token() -> None:
    stable = StableText()
    assert [stable.of(text) for text in ("a", f"a{UNFINISHED}", f"a{UNFINISHED}", "a答", "a答b", "a答b")] == ["", "a", "", "", "答", "b"]
