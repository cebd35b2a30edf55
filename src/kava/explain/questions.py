"""Questions to explain: checks of a user's own questions, gold answers if known, and traces written by the model if there are none."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kava.config import Config
from kava.data.answer_types import AnswerType, same_answer
from kava.data.answers import extract_answer
from kava.data.example import Example
from kava.data.mini.problems import EXAMPLE
from kava.data.mini.recognise import PIECE, describe_steps, read_question, why_unanswerable
from kava.data.sequences import SequenceBuilder
from kava.errors import UserError
from kava.generate import Reasoner


def checked_question(reasoner: Reasoner, question: str, config: Config) -> str:
    """Return the question after checking that the model can read it.

    Raises:
        UserError: it is empty, or longer than the model was trained for.
    """
    if not question.strip():
        raise UserError("the question is empty; ask something such as: '" + EXAMPLE + "'")
    tokens, limit = len(reasoner.builder.question_ids(question)), config.dataset.max_length
    if tokens > limit:
        raise UserError(f"the question has {tokens} tokens, but the model was trained on at most {limit} (dataset.max_length); shorten it")
    return question


def readable(reasoner: Reasoner, examples: Sequence[Example], config: Config) -> list[Example]:
    """Return the examples that the model can read; of a data set, questions longer than it was trained for are left out.

    Raises:
        UserError: a user's own question, which has no gold answer, cannot be read, or no question can.
    """
    found, problem = [], None
    for example in examples:
        try:
            checked_question(reasoner, example.question, config)
            found.append(example)
        except UserError as error:
            if not example.answer:
                raise
            problem = problem or error
    if problem and not found:
        raise UserError(f"none of the {len(examples)} questions can be read; of the first: {problem}")
    return found


@dataclass(frozen=True)
class Solution:
    """Gold answer of a question, the steps that lead to it as readable text, and the result of each step that has one."""

    answer: str
    answer_type: AnswerType
    steps: tuple[str, ...]
    results: tuple[str, ...]

    def agrees(self, answer: str | None) -> bool:
        """Return whether an answer is right."""
        return same_answer(answer, self.answer, self.answer_type)


def solution(config: Config, question: str, examples: Iterable[Example] = ()) -> Solution | None:
    """Return the solution of a built-in problem, or of a question that is one of the examples; None for any other question."""
    chain = read_question(question, config.dataset.mini.modulus) if config.dataset.name == "builtin:mini" else None
    if chain is not None:
        values = chain.values(config.dataset.mini.modulus)
        told = describe_steps(chain, config.dataset.mini.modulus)
        return Solution(str([chain.start, *values][-1]), "number", tuple(told.split("; ")) if told else (), tuple(map(str, values)))
    example = next((example for example in examples if example.question.split() == question.split()), None)
    if example is None:
        return None
    results = tuple(result for step in example.steps if (result := extract_answer(step, "")) is not None)
    return Solution(example.answer, example.answer_type, tuple(step.strip("<>") for step in example.steps), results)


_SHOWN = 4


def guess_reason(builder: SequenceBuilder, config: Config, question: str) -> str | None:
    """Return a sentence that says why an answer to this question would be a guess; None if there is no such reason.

    Reasons: the question contains words that the tokenizer does not know (all become the unknown token), or the model was trained on
    the built-in problems and the question is not one of them.
    """
    unknown = _unknown_words(builder, question)
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        shown = ", ".join(f"'{word}'" for word in unknown[:_SHOWN])
        return f"this model has no words for {shown}{more}"
    return why_unanswerable(question, config.dataset.mini) if config.dataset.name == "builtin:mini" else None


def _unknown_words(builder: SequenceBuilder, question: str) -> list[str]:
    tokenizer = builder.tokenizer
    if tokenizer.unk_token_id is None or tokenizer.unk_token_id not in builder.question_ids(question):
        return []
    return list(dict.fromkeys(piece for piece in PIECE.findall(question) if tokenizer.unk_token_id in builder.question_ids(piece)))


def own_example(question: str, number: int) -> Example:
    """Return a user's question as an example without trace and gold answer."""
    return Example(question.strip(), (), "", f"question/{number}")


def with_trace(reasoner: Reasoner, example: Example, max_new_tokens: int) -> Example | None:
    """Return the example with the chain of thought and answer that the model writes; None if it writes no answer or no step."""
    written = reasoner.generate([example.question], max_new_tokens=max_new_tokens, use_latent=False)[0]
    trace = written.text.rpartition(reasoner.builder.answer_prompt)[0]
    steps = tuple(line.strip() for line in trace.splitlines() if line.strip())
    if written.answer is None or not steps:
        return None
    return Example(example.question, steps, example.answer or written.answer, example.id)
