"""`explanation.json`: the results of `kava explain` as plain numbers, with its reader and writer.

    write_explanation("outputs/mini/explain/explanation.json", explanation)
    explanation = read_explanation(path)

Iteration 0 is the prefill. Latents, layers, heads and positions count from 0.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kava.results import Record, parse_record, read_mapping, write_text

EXPLANATION_FORMAT: Literal["kava.explanation/1"] = "kava.explanation/1"
EXPLANATION = "explanation.json"
_CURE = "run kava explain again"

Grid = list[list[float]]


class Kept(Record):
    """Which tokens of the written trace the eviction kept.

    `tokens` are those of the teacher's trace before compression; `left_out` are those of the last step, which `drop_last_step` removes from
    a trace of the data set.
    `positions[l][h]` are the kept ones of layer l and KV head h, in time order; `share[i]` is the fraction of all layers and
    heads that kept token i.
    """

    tokens: list[str]
    left_out: list[str]
    written_by: Literal["data set", "model"]
    eviction: str
    positions: list[list[list[int]]]
    share: list[float]


class Similarity(Record):
    """Cosine of the student's latent i (row) and the teacher's kept entry j (column), mean over heads: `keys[l][i][j]`.

    Columns are the filled slots only: a trace shorter than M has fewer than M entries to keep.
    """

    keys: list[Grid]
    values: list[Grid]


class Attention(Record):
    """Attention of the answer, averaged over its tokens: `latents[l][h][i]` per KV head, `parts[name][l]` summed, averaged over heads."""

    latents: list[Grid]
    parts: dict[str, list[float]]


class QuestionView(Record):
    """One question: what the model answered, what each latent decodes to at each iteration (`tokens[t][i][k]`), and the caches."""

    question: str
    gold: str | None
    prediction: str | None
    correct: bool | None
    tokens: list[list[list[str]]]
    probabilities: list[list[list[float]]]
    attention: Attention
    kept: Kept | None
    similarity: Similarity | None


class Iterations(Record):
    """Answers at one T: how often they agree with those at the fixed point, and how often they are right."""

    iterations: int
    agreement: float
    agreement_ci95: list[float]
    accuracy: float | None
    difference_to_fixed_point: float | None
    difference_ci95: list[float] | None


class Convergence(Record):
    """Convergence of the latents, over `questions` questions.

    `distance[t][i]` is the mean of |h_t - h_M| / |h_M| of latent i, `top_token_agreement[t]` the share of latents whose top token is
    already that of the fixed point T = M. `trained_iterations` is the configured T: as trained, unless it was overridden.
    """

    questions: int
    trained_iterations: int
    distance: Grid
    top_token_agreement: list[float]
    answers: list[Iterations]


class Effect(Record):
    """Effect of one intervention on one latent (null: all latents) on the answers, on the same questions, with 95 % intervals.

    `difference` is the accuracy with minus without the intervention (`paired_difference`); `took_donor` is the share of swapped
    questions whose answer became the donor's, among those where the two differ.
    """

    latent: int | None
    kind: Literal["zero", "mean", "swap"]
    changed: float
    changed_ci95: list[float]
    accuracy: float | None
    difference: float | None
    difference_ci95: list[float] | None
    p_value: float | None
    took_donor: float | None


class Interventions(Record):
    """All interventions, on the same `questions` questions."""

    questions: int
    accuracy: float | None
    effects: list[Effect]


class StepResults(Record):
    """Intermediate results in the latents of `questions` questions of `steps` steps.

    `held[s][i]` is the share of questions whose latent i decodes to the result of step s, `by_chance[s][i]` the same share with the
    results of all other questions in place of a question's own.
    """

    steps: int
    questions: int
    held: Grid
    by_chance: Grid

    @property
    def above_chance(self) -> bool:
        """Whether any latent decodes to any step's result at least 5 percentage points more often than by chance."""
        pairs = zip(self.held, self.by_chance, strict=True)
        return any(own - other >= 0.05 for held, chance in pairs for own, other in zip(held, chance, strict=True))

    def in_words(self) -> str:
        """Return a sentence that names, per step, the latent that is furthest above chance."""
        said = []
        for number, (held, chance) in enumerate(zip(self.held, self.by_chance, strict=True), 1):
            best = max(range(len(held)), key=lambda i: held[i] - chance[i])
            said.append(f"result {number} stands in latent {best} for {100 * held[best]:.0f} % ({100 * chance[best]:.0f} % by chance)")
        return f"{self.questions} questions of {self.steps} step{'s' if self.steps > 1 else ''}: {', '.join(said)}"


class Explanation(Record):
    """One checkpoint, explained. Parts that the method or the questions do not allow are null, and `notes` says why."""

    format: Literal["kava.explanation/1"] = EXPLANATION_FORMAT
    method: str
    num_latents: int = Field(ge=1)
    num_iterations: int = Field(ge=0)
    checkpoint: str
    data: str | None
    notes: list[str]
    questions: list[QuestionView]
    mean_similarity: Similarity | None
    intermediate: list[StepResults] = []
    convergence: Convergence | None
    interventions: Interventions | None
    provenance: dict[str, Any]


def write_explanation(path: str | Path, explanation: Explanation) -> None:
    """Write atomically, with numbers rounded to six decimals.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(path, json.dumps(_rounded(explanation.model_dump(mode="json")), ensure_ascii=False) + "\n")


def read_explanation(path: str | Path) -> Explanation:
    """Read and check an explanation.

    Raises:
        UserError: the file is missing, broken or of another format.
    """
    return parse_record(Explanation, read_mapping(path, "explanation", _CURE), f"explanation {path}", _CURE)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, list):
        return [_rounded(element) for element in value]
    if isinstance(value, dict):
        return {key: _rounded(element) for key, element in value.items()}
    return value
