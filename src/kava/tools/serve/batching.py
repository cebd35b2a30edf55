"""Dynamic batching: a bounded queue of questions, and one worker thread that answers waiting questions in batches.

A question gets the same answer in a batch as alone (up to rounding error), so other requests do not affect it.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from kava.generate import Generation, Reasoner
from kava.model.backbone import evaluating


class QueueFullError(Exception):
    """The queue is full."""


class ClosedError(Exception):
    """The server is shutting down and accepts no more questions."""


@dataclass(frozen=True)
class Settings:
    """How to answer; only questions with the same settings share a batch."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    use_latent: bool = True


# Compared by identity: two requests may ask the same question.
@dataclass(eq=False)
class PendingRequest:
    """A question in the queue or in the batch that is being answered.

    Attributes:
        question: token ids of the question.
        settings: how to answer it.
        write: called in the worker thread after every token with the text so far, whose last character may be incomplete.
        finish: called once, with the answer or an exception: in the worker thread, or by `Batcher.close` and `Batcher.stop`.
        left: set when the client has disconnected or no longer waits; a batch stops once this is set for all of its questions.
    """

    question: list[int]
    settings: Settings
    write: Callable[[str], None] | None
    finish: Callable[[Generation | Exception], None]
    left: threading.Event = field(default_factory=threading.Event)


class Batcher:
    """Answers the questions of many clients with one model.

    Args:
        reasoner: the model.
        batch_size: maximum number of questions in a batch.
        waiting: maximum length of the queue, not counting the batch that is being answered.
    """

    def __init__(self, reasoner: Reasoner, batch_size: int, waiting: int) -> None:
        self.reasoner = reasoner
        self.batch_size = batch_size
        self.waiting = waiting
        self._queue: deque[PendingRequest] = deque()
        # Those of the current batch that have no answer yet.
        self._open: set[PendingRequest] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="kava serve", daemon=True)
        self._worker.start()

    def ask(self, asked: PendingRequest) -> None:
        """Add a question to the end of the queue.

        Raises:
            UserError: the question with its answer may exceed the context length of the model.
            QueueFullError: the queue is full.
            ClosedError: the server is shutting down.
        """
        self.reasoner.require_room([asked.question], asked.settings.max_new_tokens, asked.settings.use_latent)
        with self._changed:
            if self._closed:
                raise ClosedError
            if len(self._queue) >= self.waiting:
                self._drop_abandoned()
            if len(self._queue) >= self.waiting:
                raise QueueFullError
            self._queue.append(asked)
            self._changed.notify()

    def _drop_abandoned(self) -> None:
        """Remove the questions whose clients no longer wait."""
        self._queue = deque(asked for asked in self._queue if not asked.left.is_set())

    def close(self) -> None:
        """Refuse the queued questions and all to come; the current batch goes on."""
        with self._changed:
            self._closed = True
            refused, self._queue = list(self._queue), deque()
            self._changed.notify()
        for asked in refused:
            asked.finish(ClosedError())

    def stop(self) -> None:
        """After `close`: refuse what is left of the current batch too; the worker thread ends after the pass that it is in."""
        for asked in list(self._open):
            self._finish(asked, ClosedError())

    def join(self) -> None:
        """After `close`: wait for the end of the worker thread."""
        self._worker.join()

    def _finish(self, asked: PendingRequest, answer: Generation | Exception) -> None:
        with self._changed:
            if asked not in self._open:
                return
            self._open.remove(asked)
        asked.finish(answer)

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                answers: list[Generation | Exception] = [*self._answer(batch)]
            except Exception as error:  # the server keeps running; the clients of this batch get the error
                answers = [error] * len(batch)
            for asked, answer in zip(batch, answers, strict=True):
                self._finish(asked, answer)

    def _next_batch(self) -> list[PendingRequest]:
        """Wait for questions and return the oldest one with those of equal settings; an empty list when the batcher is closed."""
        with self._changed:
            while True:
                self._drop_abandoned()
                if self._queue or self._closed:
                    break
                self._changed.wait()
            first = self._queue[0].settings if self._queue else Settings(0)
            # Sampled rows of a batch share one generator, so the same seed would give another answer in another batch.
            most = 1 if first.temperature else self.batch_size
            same = [asked for asked in self._queue if asked.settings == first][:most]
            self._queue = deque(asked for asked in self._queue if asked not in same)
            self._open = set(same)
            return same

    def _answer(self, batch: list[PendingRequest]) -> list[Generation]:
        settings, reasoner = batch[0].settings, self.reasoner
        generator = torch.Generator(reasoner.device).manual_seed(settings.seed)

        def watch(written: list[list[int]], answer: Callable[[int], Generation]) -> bool:
            for row, asked in enumerate(batch):
                if asked not in self._open:
                    continue
                if written[row][-1] == reasoner.builder.tokenizer.eos_token_id:
                    self._finish(asked, answer(row))
                elif asked.write and not asked.left.is_set():
                    asked.write(reasoner.builder.text(written[row]))
            return not all(asked.left.is_set() for asked in list(self._open))

        with torch.inference_mode(), evaluating(reasoner.model):
            begun = reasoner.start([asked.question for asked in batch], settings.use_latent, settings.max_new_tokens)
            return reasoner.write(
                *begun, settings.max_new_tokens, settings.temperature, generator,
                prompted=not reasoner.writes_trace(settings.use_latent), watch=watch,
            )  # fmt: skip
