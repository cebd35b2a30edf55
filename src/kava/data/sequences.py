"""Token ids of one example, segment by segment: question | CoT steps | answer prompt + number + EOS (method.md, section 2).

Segments are tokenised apart and joined as ids, so that no token ever spans two of them and the teacher's and the
student's copies of a segment are the same tokens.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any
from zlib import crc32

from kava.data.example import Example, is_text
from kava.errors import UserError

# The new tokens; the one home of their spelling.
BOT, EOT, LATENT = "<bot>", "<eot>", "<latent>"
SPECIAL_TOKENS = [BOT, EOT, LATENT]
# Examples that the tokenizer gets at once.
BLOCK = 1000


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """Token ids of one example.

    Attributes:
        question: ids of the question, with BOS where the tokenizer has one.
        steps: ids of each CoT step.
        answer: ids of the answer prompt, the number and EOS.
        seed: a hash of the example's content, for random choices that must not depend on the batch.
        id: of the example it was made from.
    """

    question: list[int]
    steps: list[list[int]]
    answer: list[int]
    seed: int
    id: str = ""

    def cot(self, drop_last_step: bool) -> list[int]:
        """Ids of the written trace, without its last step if asked (it states the result, and would leak the answer)."""
        steps = self.steps[:-1] if drop_last_step else self.steps
        return [token for step in steps for token in step]

    @property
    def length(self) -> int:
        return len(self.question) + sum(map(len, self.steps)) + len(self.answer)


class SequenceBuilder:
    """Turns examples into ids with one tokenizer and one answer prompt.

    Raises:
        UserError: the tokenizer has no EOS token, makes no token of the answer prompt, or merges it with the number that follows.
    """

    def __init__(self, tokenizer: Any, answer_prompt: str) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no EOS token, so no answer could ever end; set one in its tokenizer_config.json")
        self.tokenizer = tokenizer
        self.answer_prompt = answer_prompt
        self.prompt_ids = self._ids(answer_prompt)
        if not self.prompt_ids:
            raise UserError(
                f"dataset.answer_prompt {answer_prompt!r} is no token of this tokenizer; give it words, such as 'The answer is:'"
            )
        for number in ("7", "42", "-3.5"):
            in_context = self._ids(f"{answer_prompt} {number}")
            if in_context[: len(self.prompt_ids)] != self.prompt_ids:
                raise UserError(
                    f"dataset.answer_prompt '{answer_prompt}' is split differently when a number follows it; "
                    "end it with a character that this tokenizer keeps apart, such as ':'"
                )

    def encode(self, example: Example) -> EncodedExample:
        """Ids of one example; every segment ends its line."""
        return self.encode_all([example])[0]

    def encode_all(self, examples: Iterable[Example]) -> list[EncodedExample]:
        """Ids of many examples."""
        return list(self.encode_each(examples))

    def encode_each(self, examples: Iterable[Example]) -> Iterator[EncodedExample]:
        """Ids of many examples, one after the other; the tokenizer gets them in blocks, whose own records are large."""
        remaining = iter(examples)
        while block := list(islice(remaining, BLOCK)):
            yield from self._encode_block(block)

    def _encode_block(self, examples: list[Example]) -> list[EncodedExample]:
        questions = self._all_ids([example.question.strip() + "\n" for example in examples], special=True)
        rest = [text for example in examples for text in (*(step + "\n" for step in example.steps), f" {example.answer}")]
        segments = iter(self._all_ids(rest, special=False))
        encoded = []
        for example, question in zip(examples, questions, strict=True):
            steps = [next(segments) for _ in example.steps]
            answer = [*self.prompt_ids, *next(segments), self.tokenizer.eos_token_id]
            content = "\n".join([example.question, *example.steps, example.answer])
            encoded.append(EncodedExample(question, steps, answer, crc32(content.encode()), example.id))
        return encoded

    def question_ids(self, question: str) -> list[int]:
        """Ids of a question as it is read at training and at inference.

        Raises:
            UserError: it is no text.
        """
        if not is_text(question):
            raise UserError(f"question {question[:40]!r} holds half of a character, such as \\ud800 alone; write it in UTF-8")
        return list(self.tokenizer(question.strip() + "\n").input_ids)

    def _all_ids(self, texts: list[str], special: bool) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=special, return_attention_mask=False).input_ids
        return ids

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)
