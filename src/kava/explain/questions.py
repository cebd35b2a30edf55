"""Questions to explain: a user's own, checked before the model reads them, and traces for questions that come without one."""

from kava.config import Config
from kava.data.example import Example
from kava.errors import UserError
from kava.generate import Reasoner


def checked_question(reasoner: Reasoner, question: str, config: Config) -> str:
    """A question that the model can read.

    Raises:
        UserError: it is empty, or longer than the model was trained for.
    """
    if not question.strip():
        raise UserError("the question is empty; ask something such as: " + _EXAMPLE)
    tokens, limit = len(reasoner.builder.question_ids(question)), config.dataset.max_length
    if tokens > limit:
        raise UserError(f"the question has {tokens} tokens, but the model was trained on at most {limit} (dataset.max_length); shorten it")
    return question


_EXAMPLE = "'Tom has 3 apples . He finds 4 more apples . How many apples does Tom have ?'"


def own_example(question: str, number: int) -> Example:
    """A user's question as an example without trace and gold answer."""
    return Example(question.strip(), (), "", f"question/{number}")


def with_trace(reasoner: Reasoner, example: Example, max_new_tokens: int) -> Example | None:
    """The example with the chain of thought and answer that the model itself writes; None where it writes no answer or no step."""
    written = reasoner.generate([example.question], max_new_tokens=max_new_tokens, use_latent=False)[0]
    trace = written.text.rpartition(reasoner.builder.answer_prompt)[0]
    steps = tuple(line.strip() for line in trace.splitlines() if line.strip())
    if written.answer is None or not steps:
        return None
    return Example(example.question, steps, example.answer or written.answer, example.id)
