"""Token ids of one example, segment by segment: question | CoT steps | answer prompt + number + EOS (method.md, section 2).

Segments are tokenised separately and joined as ids, so that no token spans two segments, and the teacher and the student have
the same tokens for a segment.

The *fixed text* of the answer part is its leading tokens that are the same for every number: GPT-2 tokenises "The answer is: 18" as
`The| answer| is|:| 18`, so it ends at ":"; Llama-3, Qwen and SmolLM2 have `The| answer| is|:| |18`, so it includes the space.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any
from zlib import crc32

from kava.config import DatasetConfig
from kava.data.answer_types import ANSWER_TYPES, AnswerType
from kava.data.example import Example, is_text
from kava.errors import UserError

# The tokens added to the vocabulary; they are spelled out only here.
BOT, EOT, LATENT = "<bot>", "<eot>", "<latent>"
SPECIAL_TOKENS = [BOT, EOT, LATENT]
# Number of examples in one tokenizer call.
BLOCK = 1000


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """Token ids of one example.

    Attributes:
        question: ids of the question, with BOS where the tokenizer has one.
        steps: ids of each CoT step.
        answer: ids of the answer prompt, the number and EOS.
        seed: a hash of the example's content, for random choices that must not depend on the batch.
        id: id of the original example.
    """

    question: list[int]
    steps: list[list[int]]
    answer: list[int]
    seed: int
    id: str = ""

    def cot(self, drop_last_step: bool) -> list[int]:
        """Return the ids of the written trace, optionally without its last step, which states the result and would leak the answer."""
        steps = self.steps[:-1] if drop_last_step else self.steps
        return [token for step in steps for token in step]


class SequenceBuilder:
    """Converts examples to token ids with one tokenizer and one wording.

    Args:
        tokenizer: of the base model.
        answer_prompt: text before the number.
        question_suffix: text that ends the question.
        answer_separator: text between the answer prompt and the number.
        answer_type: type of the answers.
        prompt_ids: ids of the fixed text, for a model trained with a different one; default: determined with this tokenizer.

    Attributes:
        prompt_ids: ids of the fixed text, processed in one forward pass; the last one is the distillation token.

    Raises:
        UserError: the tokenizer has no EOS token, encodes the answer prompt as no tokens, merges it with the number that follows, or
            encodes different numbers as the same tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        answer_prompt: str,
        *,
        question_suffix: str = "\n",
        answer_separator: str = " ",
        answer_type: AnswerType = "number",
        prompt_ids: list[int] | None = None,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no EOS token, so no answer could ever end; set one in its tokenizer_config.json")
        self.tokenizer = tokenizer
        self.answer_prompt = answer_prompt
        self.question_suffix = question_suffix
        self.answer_separator = answer_separator
        self.answer_type = answer_type
        self.prompt_ids = prompt_ids or self._fixed_text()

    def _fixed_text(self) -> list[int]:
        alone = self._ids(self.answer_prompt)
        if not alone:
            raise UserError(
                f"dataset.answer_prompt {self.answer_prompt!r} is no token of this tokenizer; give it words, such as 'The answer is:'"
            )
        written = [self._ids(self._answer_text(number)) for number in ANSWER_TYPES[self.answer_type].samples]
        common = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*written, strict=False))]
        if len(common) < len(alone):
            raise UserError(
                f"dataset.answer_prompt '{self.answer_prompt}' is split differently when a number follows it; "
                "end it with a character that this tokenizer keeps apart, such as ':'"
            )
        if common in written:
            raise UserError(
                "this tokenizer encodes different numbers as the same tokens, so answers cannot be told apart; use another tokenizer"
            )
        return common

    @property
    def wording(self) -> list[Any]:
        """Settings that determine the tokens, in addition to the tokenizer and the text."""
        return [self.question_suffix, self.answer_prompt, self.answer_separator, self.prompt_ids]

    def encode(self, example: Example) -> EncodedExample:
        """Encode one example; every CoT step ends with a newline."""
        return self.encode_all([example])[0]

    def encode_all(self, examples: Iterable[Example]) -> list[EncodedExample]:
        """Encode many examples."""
        return list(self.encode_each(examples))

    def encode_each(self, examples: Iterable[Example]) -> Iterator[EncodedExample]:
        """Encode many examples one by one; the tokenizer gets them in blocks, because its output takes much memory."""
        remaining = iter(examples)
        while block := list(islice(remaining, BLOCK)):
            yield from self._encode_block(block)

    def _encode_block(self, examples: list[Example]) -> list[EncodedExample]:
        questions = self._all_ids([self._question_text(example.question) for example in examples], special=True)
        rest = [text for example in examples for text in (*(step + "\n" for step in example.steps), self._answer_text(example.answer))]
        segments = iter(self._all_ids(rest, special=False))
        encoded = []
        for example, question in zip(examples, questions, strict=True):
            steps = [next(segments) for _ in example.steps]
            answer = [*self.prompt_ids, *self._number_ids(example.answer, next(segments)), self.tokenizer.eos_token_id]
            content = "\n".join([example.question, *example.steps, example.answer])
            encoded.append(EncodedExample(question, steps, answer, crc32(content.encode()), example.id))
        return encoded

    def text(self, ids: list[int]) -> str:
        """Decode ids to text, without special tokens and surrounding white space."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def question_ids(self, question: str) -> list[int]:
        """Encode a question as in training and at inference.

        Raises:
            UserError: the question contains an incomplete character (an unpaired surrogate).
        """
        return self.all_question_ids([question])[0]

    def all_question_ids(self, questions: Sequence[str]) -> list[list[int]]:
        """`question_ids` of many questions; one call of the tokenizer takes half the time of many."""
        for question in questions:
            if not is_text(question):
                raise UserError(f"question {question[:40]!r} holds half of a character, such as \\ud800 alone; write it in UTF-8")
        return self._all_ids([self._question_text(question) for question in questions], special=True)

    def _question_text(self, question: str) -> str:
        return question.strip() + self.question_suffix

    def _answer_text(self, number: str) -> str:
        return f"{self.answer_prompt}{self.answer_separator}{number}"

    def _number_ids(self, number: str, answer: list[int]) -> list[int]:
        """Return the ids after the fixed text, given the ids of the answer prompt and the number tokenised together."""
        fixed = len(self.prompt_ids)
        if answer[:fixed] == self.prompt_ids:
            return answer[fixed:]
        # The fixed text ends in a space, but " -" is one token: encode the number as it is encoded after a digit.
        digit, both = self._ids("0"), self._ids(f"0{number}")
        return both[len(digit) :] if both[: len(digit)] == digit else self._ids(number)

    def _all_ids(self, texts: list[str], special: bool) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=special, return_attention_mask=False).input_ids
        return ids

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


def builder_of(tokenizer: Any, dataset: DatasetConfig, prompt_ids: list[int] | None = None) -> SequenceBuilder:
    """Return the builder for a configuration; for `prompt_ids` see `SequenceBuilder`."""
    return SequenceBuilder(
        tokenizer,
        dataset.answer_prompt,
        question_suffix=dataset.question_suffix,
        answer_separator=dataset.answer_separator,
        answer_type=dataset.answer_type,
        prompt_ids=prompt_ids,
    )
