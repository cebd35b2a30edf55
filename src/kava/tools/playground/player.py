"""The playground without its page: stream answers, and measure the accuracy of settings of M and T on sample questions.

player = Player(trained, examples)
for step in player.ask("Tom has ...", num_latents=12, num_iterations=3): print(step.text)

Calls share only the model, which a lock guards for each token, and the stored measurements, so many users can ask at the same time.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from kava.checkpoint import Trained
from kava.data.answer_types import read_answer, same_answer, same_prediction
from kava.data.example import Example
from kava.data.mini.problems import EXAMPLE
from kava.errors import UserError
from kava.explain.intermediate import first_token
from kava.explain.questions import Solution, checked_question, guess_reason, solution
from kava.explain.readout import Readout, read_latents
from kava.generate import Generation, Reasoner
from kava.methods import WITH_LATENTS
from kava.results.statistics import wilson_interval

T = TypeVar("T")

SUGGESTIONS = 4
# Seconds between two checks whether answers are being written; measurements wait, since they would slow the answers down.
_PATIENCE = 0.02


@dataclass(frozen=True)
class Progress:
    """An answer while it is written.

    Attributes:
        text: the text so far.
        chain: the chain of thought in the text; empty for an answer from latents.
        answer: the answer in the complete text; None before that, or if the text has no answer.
        forward_passes, seconds: the cost so far, without the time that the caller spends between two steps.
        done: the text is complete.
    """

    text: str
    chain: str
    answer: str | None
    forward_passes: int
    seconds: float
    done: bool


@dataclass(frozen=True)
class Measured:
    """Results of one setting of M and T on the sample: accuracy with its Wilson interval, and agreement with other answers.

    `same_as_configured` is the fraction of questions with the same answer as at the configured M and T, `same_as_written` the fraction with
    the same answer as after the chain of thought that the model writes; `forward_passes` is the mean per question.
    """

    num_latents: int
    num_iterations: int
    questions: int
    accuracy: float
    interval: tuple[float, float]
    same_as_configured: float
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
        if not method.uses_latents:
            raise UserError(f"method {method.name} has no latents to play with; give a checkpoint of {WITH_LATENTS}")
        self.trained = trained
        self.examples = list(examples)
        self.builder = trained.builder
        self.config = trained.config
        trained.model.eval()
        self._measured: dict[tuple[int, int], Measured] = {}
        self._predictions: dict[tuple[int, int] | None, list[str | None]] = {}
        self._measuring = threading.Lock()
        # Forward passes change state of the model (counter, buffers), so one visitor uses it at a time; the lock is taken for each token.
        self._model = threading.Lock()
        self._answering: set[object] = set()

    @property
    def configured_setting(self) -> tuple[int, int]:
        """M and T of the configuration: as trained, unless they were overridden."""
        return self.config.latent.num_tokens, self.config.latent.num_iterations

    @property
    def parallel(self) -> bool:
        """Whether the latents are updated in parallel, T times; otherwise they are generated sequentially."""
        return self.trained.model.method.latents == "parallel"

    @property
    def most(self) -> tuple[int, int]:
        """The largest M and T that the playground accepts."""
        num_latents, num_iterations = self.configured_setting
        return 2 * num_latents, max(2 * num_latents, num_iterations)

    def reasoner(self, num_latents: int, num_iterations: int) -> Reasoner:
        """Return the model with the given M and T.

        Raises:
            UserError: M or T is out of range.
        """
        for name, value, least, most in (("M", num_latents, 1, self.most[0]), ("T", num_iterations, 0, self.most[1])):
            if not least <= value <= most:
                raise UserError(f"{name} = {value} is out of range: the playground accepts {least} to {most}")
        return self.trained.reasoner(num_latents, num_iterations)

    def guess_reason(self, question: str) -> str | None:
        """Return why an answer to this question would be a guess; None if there is no such reason."""
        return guess_reason(self.builder, self.config, question)

    @torch.inference_mode()
    def ask(self, question: str, num_latents: int, num_iterations: int, *, use_latent: bool = True) -> Iterator[Progress]:
        """Answer with greedy decoding, one step per token; `use_latent` False writes the chain of thought.

        Raises:
            UserError: the question is empty or too long, or M or T is out of range.
        """
        reasoner = self.reasoner(num_latents, num_iterations)
        checked_question(reasoner, question, self.config)
        ticket = object()
        self._answering.add(ticket)
        try:
            yield from self._written(reasoner, question, use_latent)
        finally:
            self._answering.discard(ticket)

    def _written(self, reasoner: Reasoner, question: str, use_latent: bool) -> Iterator[Progress]:
        seconds, resumed, passes = 0.0, time.perf_counter(), 0
        written: list[int] = []
        for written, passes in self._in_turns(reasoner.stream(question, self.config.evaluation.max_new_tokens, use_latent)):
            seconds += time.perf_counter() - resumed
            if written[-1] != self.builder.tokenizer.eos_token_id:
                yield self._progress(written, passes, seconds, use_latent, done=False)
            resumed = time.perf_counter()
        yield self._progress(written, passes, seconds, use_latent, done=True)

    def _in_turns(self, pieces: Iterator[T]) -> Iterator[T]:
        """Yield the same pieces; each is computed while holding the lock of the model."""
        while True:
            with self._model:
                try:
                    piece = next(pieces)
                except StopIteration:
                    return
            yield piece

    def warm_up(self) -> None:
        """Run one step in both modes, so that the time of the first answer does not include one-time costs."""
        for question in self.suggestions[:1]:
            for use_latent in (True, False):
                next(self.ask(question, *self.configured_setting, use_latent=use_latent))

    def solution(self, question: str) -> Solution | None:
        """Return the gold answer and its steps for a built-in problem or a question of the sample; None for any other question."""
        return solution(self.config, question, self.examples)

    def marks(self, readout: Readout, gold: Solution | None) -> list[list[list[int]]]:
        """Return as `marks[t][i]` the steps, from 1, whose result latent i decodes to after iteration t; only first tokens are compared."""
        firsts = [first_token(self.reasoner(*self.configured_setting), result) for result in gold.results] if gold else []
        return [[[step for step, first in enumerate(firsts, 1) if first == top[0]] for top in row] for row in readout.tokens]

    def trace(self, question: str, num_latents: int, num_iterations: int, top_k: int = 3) -> Readout:
        """Return what the latents decode to after every iteration."""
        with self._model:
            return read_latents(self.reasoner(num_latents, num_iterations), question, top_k)

    @property
    def suggestions(self) -> list[str]:
        """Suggested questions: the built-in example for a model of the built-in problems, then questions of the sample."""
        first = [EXAMPLE] if self.config.dataset.name == "builtin:mini" else []
        return [*first, *(example.question for example in self.examples)][:SUGGESTIONS]

    @property
    def hides_last_step(self) -> bool:
        """Whether the written chains of thought end one step early, because the model was trained on such chains."""
        return self.trained.model.method.teacher and self.config.dataset.drop_last_step

    @property
    def chance(self) -> float:
        """Accuracy on the sample of always giving its most common answer."""
        return max(Counter(example.answer for example in self.examples).values()) / len(self.examples)

    def axes(self) -> tuple[list[int], list[int]]:
        """Return the values of M and of T on the accuracy map: some around the configured ones, and all that were measured."""
        (m, t), (most_m, most_t) = self.configured_setting, self.most
        measured = list(self._measured)
        several = {1, m // 4, m // 2, 3 * m // 4, m, 3 * m // 2, 2 * m, *(own for own, _ in measured)}
        iterations = {0, 1, 2, 3, t // 2, t, 2 * t, *(own for _, own in measured)} if self.parallel else {t}
        return sorted(n for n in several if 1 <= n <= most_m), sorted(n for n in iterations if n <= most_t)

    def measured(self) -> list[Measured]:
        """Return all measurements so far."""
        return list(self._measured.values())

    def measure_all(self) -> Iterator[Measured]:
        """Measure every setting of `axes`, those nearest to the configured one first; before each, wait until no answer is written."""
        m, t = self.configured_setting
        settings = ((own_m, own_t) for own_m in self.axes()[0] for own_t in self.axes()[1])
        for setting in sorted(settings, key=lambda setting: abs(setting[0] - m) / m + abs(setting[1] - t) / max(t, 1)):
            while self._answering:
                time.sleep(_PATIENCE)
            yield self.measure(*setting)

    def measure(self, num_latents: int, num_iterations: int) -> Measured:
        """Answer the sample with the given M and T; results are cached."""
        key = (num_latents, num_iterations)
        with self._measuring:
            if key not in self._measured:
                self._measured[key] = self._measure(*key)
            return self._measured[key]

    def _measure(self, num_latents: int, num_iterations: int) -> Measured:
        passes, found = self._answers((num_latents, num_iterations))
        configured, written = self._remembered(self.configured_setting), self._remembered(None)
        correct = sum(
            same_answer(answer, example.answer, example.answer_type) for answer, example in zip(found, self.examples, strict=True)
        )
        total, same = len(self.examples), partial(same_prediction, answer_type=self.builder.answer_type)
        return Measured(
            num_latents,
            num_iterations,
            total,
            correct / total,
            wilson_interval(correct, total),
            sum(map(same, found, configured)) / total,
            sum(map(same, found, written)) / total,
            passes,
        )

    def _remembered(self, setting: tuple[int, int] | None) -> list[str | None]:
        if setting not in self._predictions:
            self._predictions[setting] = self._answers(setting)[1]
        return self._predictions[setting]

    def _answers(self, setting: tuple[int, int] | None) -> tuple[float, list[str | None]]:
        """Return the mean forward passes and the answers on the sample; `setting` None writes the chain of thought."""
        evaluation = self.config.evaluation
        reasoner, size = self.reasoner(*(setting or self.configured_setting)), evaluation.batch_size
        questions = [example.question for example in self.examples]
        generations: list[Generation] = []
        for first in range(0, len(questions), size):
            with self._model:
                generations += reasoner.generate(
                    questions[first : first + size],
                    batch_size=size,
                    max_new_tokens=evaluation.max_new_tokens,
                    use_latent=setting is not None,
                )
        found = [item.answer for item in generations]
        return sum(item.forward_passes for item in generations) / len(generations), found

    def _progress(self, written: list[int], passes: int, seconds: float, use_latent: bool, *, done: bool) -> Progress:
        builder = self.builder
        text = builder.text(written)
        before, prompt, after = text.rpartition(builder.answer_prompt)
        chain = "" if use_latent else (before if prompt else after).strip()
        answer = read_answer(text, builder.answer_prompt, builder.answer_type, after_prompt=use_latent) if done else None
        # The last token was generated, but no forward pass has read it yet.
        return Progress(text, chain, answer, passes + max(len(written) - 1, 0), seconds, done)
