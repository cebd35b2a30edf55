"""Answer questions, extract the numbers, compare them by value (method.md, section 9)."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kava.data.answer_types import same_answer
from kava.data.answers import answers_close
from kava.data.example import Example
from kava.generate import Generation, Reasoner
from kava.runtime import processes


@dataclass(frozen=True)
class Answered:
    """One question of an evaluation."""

    example: Example
    generation: Generation

    @property
    def prediction(self) -> str | None:
        """The predicted answer; None if the generated text contains none."""
        return self.generation.answer

    @property
    def correct(self) -> bool:
        """Whether the prediction equals the gold answer, without tolerance."""
        return same_answer(self.prediction, self.example.answer, self.example.answer_type)

    def row(self) -> dict[str, Any]:
        """Return the row of the per-question file."""
        return {
            "id": self.example.id,
            "question": self.example.question,
            "gold": self.example.answer,
            "prediction": self.prediction,
            "text": self.generation.text,
            "correct": self.correct,
            "forward_passes": self.generation.forward_passes,
            "generated_tokens": self.generation.generated_tokens,
            "steps": len(self.example.steps) or None,
            "cut_off": not self.generation.complete,
            "confidence": None if math.isnan(self.generation.confidence) else min(self.generation.confidence, 1.0),
        }


@dataclass(frozen=True)
class Evaluation:
    """All questions of one data set, and the time they took together."""

    answered: list[Answered]
    seconds: float

    @property
    def correct(self) -> int:
        """How many predictions equal the gold answer."""
        return sum(item.correct for item in self.answered)

    def correct_close(self, tolerance: float) -> int:
        """How many predictions equal the gold answer or are numbers within `tolerance` of it."""
        return sum(item.correct or answers_close(item.prediction, item.example.answer, tolerance) for item in self.answered)

    @property
    def cut_off(self) -> int:
        """How many answers had not ended when `max_new_tokens` ran out."""
        return sum(not item.generation.complete for item in self.answered)

    @property
    def without_number(self) -> int:
        """How many answers contain no number (or no answer of the data set's answer type)."""
        return sum(item.prediction is None for item in self.answered)

    @property
    def accuracy(self) -> float:
        """Fraction of correct predictions."""
        return self.correct / len(self.answered)

    def mean(self, field: str) -> float:
        """Return the mean of a numeric field of the generations."""
        return float(sum(getattr(item.generation, field) for item in self.answered) / len(self.answered))

    @property
    def seconds_per_question(self) -> float:
        """Wall time of the whole data set divided by its number of questions."""
        return self.seconds / len(self.answered)


def evaluate_accuracy(
    reasoner: Reasoner,
    examples: Sequence[Example],
    *,
    batch_size: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    use_latent: bool = True,
    share: bool = True,
) -> Evaluation:
    """Answer and grade every example; several processes share the examples, and each returns the answers of all.

    Args:
        reasoner: the model.
        examples: at least one.
        batch_size: questions per batch.
        max_new_tokens: per question.
        temperature, seed: sampling settings; temperature 0 is greedy.
        use_latent: False makes a latent method write its CoT.
        share: False makes every process answer all examples, in step with the others (for a model that is sharded over them).
    """
    start = time.perf_counter()
    own = processes.deal(examples) if share else examples
    generations = reasoner.generate(
        [example.question for example in own],
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        use_latent=use_latent,
    )
    answered = [Answered(example, generation) for example, generation in zip(own, generations, strict=True)]
    everyone = processes.gather(answered) if share else answered
    return Evaluation(everyone, time.perf_counter() - start)
