"""What the playground does, without its page: stream an answer, and measure a setting of M and T on sample questions.

player = Player(trained, examples)
for step in player.ask("Tom has ...", num_latents=12, num_iterations=3): print(step.text)

Nothing here is shared between two calls but the weights and a table of measurements, so that many users can ask at once.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from kava.checkpoint import Trained
from kava.data.answer_types import same_answer
from kava.data.example import Example
from kava.errors import UserError
from kava.explain.questions import checked_question, why_unknowable
from kava.explain.readout import Readout, read_latents
from kava.generate import Reasoner
from kava.methods import WITH_LATENTS
from kava.statistics import wilson_interval


@dataclass(frozen=True)
class Progress:
    """An answer while it is written: the text so far, the forward passes and seconds it took, and whether it is complete."""

    text: str
    forward_passes: int
    seconds: float
    done: bool


@dataclass(frozen=True)
class Measured:
    """A setting of M and T on the sample, as fractions: accuracy with its Wilson interval, and who else gives the same answers.

    `same_as_trained` is the share of questions answered as with the trained M and T, `same_as_written` as after the model's own
    written chain of thought; `forward_passes` is a mean per question.
    """

    num_latents: int
    num_iterations: int
    questions: int
    accuracy: float
    interval: tuple[float, float]
    same_as_trained: float
    same_as_written: float
    forward_passes: float


class Player:
    """One model and a sample of questions.

    Args:
        trained: a checkpoint of a method with latents.
        examples: the sample, with gold answers.

    Raises:
        UserError: the method has no latents.
    """

    def __init__(self, trained: Trained, examples: Sequence[Example]) -> None:
        method = trained.model.method
        if not method.thinks:
            raise UserError(f"method {method.name} has no latents to play with; give a checkpoint of {WITH_LATENTS}")
        self.trained = trained
        self.examples = list(examples)
        self.builder = trained.builder
        self.config = trained.config
        trained.model.eval()
        self._measured: dict[tuple[int, int], Measured] = {}
        self._predictions: dict[tuple[int, int] | None, list[str | None]] = {}
        self._measuring = threading.Lock()

    @property
    def trained_setting(self) -> tuple[int, int]:
        """M and T as trained."""
        return self.config.latent.num_tokens, self.config.latent.num_iterations

    @property
    def most(self) -> tuple[int, int]:
        """The largest M and T that can be asked for."""
        num_latents, num_iterations = self.trained_setting
        return 2 * num_latents, max(2 * num_latents, num_iterations)

    def reasoner(self, num_latents: int, num_iterations: int) -> Reasoner:
        """The model with another M and T.

        Raises:
            UserError: there are none, or too many.
        """
        for name, value, least, most in (("M", num_latents, 1, self.most[0]), ("T", num_iterations, 0, self.most[1])):
            if not least <= value <= most:
                raise UserError(f"{name} = {value} is out of reach: the playground takes {least} to {most}")
        return self.trained.reasoner(num_latents, num_iterations)

    def why_unknowable(self, question: str) -> str | None:
        """Why an answer to this question would be a guess; None where nothing speaks against it."""
        return why_unknowable(self.builder, self.config, question)

    @torch.inference_mode()
    def ask(self, question: str, num_latents: int, num_iterations: int, *, use_latent: bool = True) -> Iterator[Progress]:
        """Answer greedily, token by token; `use_latent` False writes the chain of thought.

        Raises:
            UserError: the question is empty or too long.
        """
        reasoner = self.reasoner(num_latents, num_iterations)
        checked_question(reasoner, question, self.config)
        started = time.perf_counter()
        prefix, logits, passes = reasoner.start([self.builder.question_ids(question)], use_latent)
        written: list[int] = []
        for _, tokens, _ in reasoner.tokens(prefix, logits, self.config.evaluation.max_new_tokens):
            written.append(int(tokens))
            read = passes + len(written) - 1
            if written[-1] != self.builder.tokenizer.eos_token_id:
                yield Progress(self._text(written), read, time.perf_counter() - started, done=False)
        yield Progress(self._text(written), passes + max(len(written) - 1, 0), time.perf_counter() - started, done=True)

    def trace(self, question: str, num_latents: int, num_iterations: int, top_k: int = 3) -> Readout:
        """What the latents decode to at every iteration."""
        return read_latents(self.reasoner(num_latents, num_iterations), question, top_k)

    def measure(self, num_latents: int, num_iterations: int) -> Measured:
        """Answer the sample with another M and T; what was measured once is remembered."""
        key = (num_latents, num_iterations)
        with self._measuring:
            if key not in self._measured:
                self._measured[key] = self._measure(*key)
            return self._measured[key]

    def _measure(self, num_latents: int, num_iterations: int) -> Measured:
        generations, found = self._answers((num_latents, num_iterations))
        trained, written = self._remembered(self.trained_setting), self._remembered(None)
        correct = sum(
            same_answer(answer, example.answer, example.answer_type) for answer, example in zip(found, self.examples, strict=True)
        )
        total = len(self.examples)
        return Measured(
            num_latents,
            num_iterations,
            total,
            correct / total,
            wilson_interval(correct, total),
            sum(a == b for a, b in zip(found, trained, strict=True)) / total,
            sum(a == b for a, b in zip(found, written, strict=True)) / total,
            generations,
        )

    def _remembered(self, setting: tuple[int, int] | None) -> list[str | None]:
        if setting not in self._predictions:
            self._predictions[setting] = self._answers(setting)[1]
        return self._predictions[setting]

    def _answers(self, setting: tuple[int, int] | None) -> tuple[float, list[str | None]]:
        """Mean forward passes and predictions on the sample; `setting` None writes the chain of thought."""
        evaluation = self.config.evaluation
        generations = self.reasoner(*(setting or self.trained_setting)).generate(
            [example.question for example in self.examples],
            batch_size=evaluation.batch_size,
            max_new_tokens=evaluation.max_new_tokens,
            use_latent=setting is not None,
        )
        found = [item.answer for item in generations]
        return sum(item.forward_passes for item in generations) / len(generations), found

    def _text(self, ids: list[int]) -> str:
        return str(self.builder.tokenizer.decode(ids, skip_special_tokens=True)).strip()
