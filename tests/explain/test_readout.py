"""Latents read as words."""

from helpers.explaining import QUESTIONS, make
from kava.explain.readout import read_latents


def test_no_more_tokens_than_there_are_words() -> None:
    reasoner = make()
    words = len(reasoner.builder.tokenizer)
    readout = read_latents(reasoner, QUESTIONS[0], 10 * words)
    assert words <= len(readout.tokens[0][0]) < 10 * words
