"""Questions that wait together are answered together: a queue of bounded length, and one thread that works on the model.

Answers of a batch are those of its questions alone (up to rounding), so who else asks changes nothing.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from kava.generate import Generation, Reasoner
from kava.model.backbone import evaluating


class QueueFullError(Exception):
    """As many questions wait as may."""


class ClosedError(Exception):
    """The server is about to end and answers nothing more."""


@dataclass(frozen=True)
class Settings:
    """How to answer; only questions with the same settings share a batch."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    use_latent: bool = True


# Each is itself, whatever another asks.
@dataclass(eq=False)
class Asked:
    """One question on its way.

    Attributes:
        question: its tokens.
        settings: how to answer it.
        write: called in the worker's thread with the text so far, after every token; the text may still lack its end.
        finish: called once, in that thread, with the answer or what went wrong.
        left: set by who asked and has gone: a batch that nobody waits for stops.
    """

    question: list[int]
    settings: Settings
    write: Callable[[str], None] | None
    finish: Callable[[Generation | Exception], None]
    left: threading.Event = field(default_factory=threading.Event)


class Batcher:
    """Answers questions of many users with one model.

    Args:
        reasoner: the model.
        batch_size: questions answered together at most.
        waiting: questions that may wait at most, those being answered not counted.
    """

    def __init__(self, reasoner: Reasoner, batch_size: int, waiting: int) -> None:
        self.reasoner = reasoner
        self.batch_size = batch_size
        self.waiting = waiting
        self._queue: deque[Asked] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="kava serve", daemon=True)
        self._worker.start()

    def ask(self, asked: Asked) -> None:
        """Put a question at the end of the queue.

        Raises:
            UserError: it, with its answer, is longer than the model reaches.
            QueueFullError: too many wait already.
            ClosedError: the server is ending.
        """
        self.reasoner.require_room([asked.question], asked.settings.max_new_tokens, asked.settings.use_latent)
        with self._changed:
            if self._closed:
                raise ClosedError
            if len(self._queue) >= self.waiting:
                raise QueueFullError
            self._queue.append(asked)
            self._changed.notify()

    def close(self) -> None:
        """Answer what is being answered, refuse what waits, and end."""
        with self._changed:
            self._closed = True
            refused, self._queue = list(self._queue), deque()
            self._changed.notify()
        for asked in refused:
            asked.finish(ClosedError())
        self._worker.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                answers: list[Generation | Exception] = [*self._answer(batch)]
            except Exception as error:  # the server outlives it: whoever asked is told
                answers = [error] * len(batch)
            for asked, answer in zip(batch, answers, strict=True):
                asked.finish(answer)

    def _next_batch(self) -> list[Asked]:
        """The question that waits longest and those with its settings; empty at the end."""
        with self._changed:
            while True:
                self._queue = deque(asked for asked in self._queue if not asked.left.is_set())
                if self._queue or self._closed:
                    break
                self._changed.wait()
            first = self._queue[0].settings if self._queue else Settings(0)
            # Rows that are drawn together share one generator: a seed would mean another answer beside others.
            most = 1 if first.temperature else self.batch_size
            same = [asked for asked in self._queue if asked.settings == first][:most]
            self._queue = deque(asked for asked in self._queue if asked not in same)
            return same

    def _answer(self, batch: list[Asked]) -> list[Generation]:
        settings, reasoner = batch[0].settings, self.reasoner
        generator = torch.Generator(reasoner.device).manual_seed(settings.seed)

        def watch(written: list[list[int]]) -> bool:
            for asked, ids in zip(batch, written, strict=True):
                if asked.write and not asked.left.is_set():
                    asked.write(reasoner.builder.text(ids))
            return not all(asked.left.is_set() for asked in batch)

        with torch.inference_mode(), evaluating(reasoner.model):
            begun = reasoner.start([asked.question for asked in batch], settings.use_latent)
            return reasoner.write(
                *begun, settings.max_new_tokens, settings.temperature, generator,
                prompted=not reasoner.writes_trace(settings.use_latent), watch=watch,
            )  # fmt: skip
