"""A whole explanation: written, read and drawn; and what cannot be explained."""

from pathlib import Path

import pytest

from helpers.explaining import EXAMPLES, LATENTS, QUESTIONS, config, make
from kava.checkpoint import open_checkpoint
from kava.data.mini.problems import EXAMPLE
from kava.errors import UserError
from kava.explain.explain import Options, explain
from kava.explain.figures import figures
from kava.explain.questions import checked_question, own_example
from kava.explain.record import Explanation, read_explanation, write_explanation


def test_explanation_round_trip_and_figures(tmp_path: Path) -> None:
    options = Options("somewhere", "built-in", details=2, top_k=3, max_new_tokens=4, say=lambda text: None)
    found = explain(make(), config(), EXAMPLES, options)
    write_explanation(tmp_path / "explanation.json", found)
    again = read_explanation(tmp_path / "explanation.json")
    assert again.model_dump(exclude={"questions", "intermediate", "convergence", "interventions", "mean_similarity"}) == found.model_dump(
        exclude={"questions", "intermediate", "convergence", "interventions", "mean_similarity"}
    )
    view = again.questions[0]
    assert (len(view.tokens), len(view.tokens[0]), len(view.tokens[0][0])) == (3, LATENTS, 3)
    assert all(sum(latent) <= 1 + 1e-5 for row in view.probabilities for latent in row)
    for kept in (item.kept for item in again.questions if item.kept):
        assert sum(kept.share) == pytest.approx(min(LATENTS, len(kept.tokens)), abs=1e-5)
        assert kept.written_by == "data set"
    drawn = dict(figures(again))
    assert {"question1_readout", "question1_attention", "mean_keys", "mean_values", "intermediate", "convergence", "interventions"} <= set(
        drawn
    )
    drawn["mean_keys"].savefig(tmp_path / "mean_keys.png")
    assert (tmp_path / "mean_keys.png").stat().st_size > 2000


def test_methods_without_iterations_or_teacher_say_so() -> None:
    options = Options("somewhere", details=1, max_new_tokens=4, say=lambda text: None)
    found: Explanation = explain(make(method="coconut"), config(method="coconut"), EXAMPLES[:2], options)
    assert found.convergence is None
    assert found.mean_similarity is None
    assert len(found.notes) == 2
    one = explain(make(), config(), EXAMPLES[:1], options)
    assert one.interventions is None
    assert "at least two" in one.notes[0]


def test_keys_whose_positions_stay_in_them_are_not_moved() -> None:
    """Gemma-3 rotates each kind of layer in its own way, SmolLM3 leaves some layers out."""
    options = Options("somewhere", details=1, max_new_tokens=4, say=lambda text: None)
    for kind in ("gemma3_text", "smollm3"):
        found = explain(make(kind), config(), EXAMPLES[:2], options)
        assert found.interventions is None
        assert "no interventions: keys of this model" in found.notes[0]


def test_what_cannot_be_explained_is_said_in_a_sentence() -> None:
    with pytest.raises(UserError, match="full_cot has no latents"):
        explain(make(method="full_cot"), config(), EXAMPLES, Options("somewhere"))
    with pytest.raises(UserError, match="question is empty"):
        checked_question(make(), "  ", config())
    with pytest.raises(UserError, match=r"question has \d+ tokens, but .* at most 8"):
        checked_question(make(), QUESTIONS[0], config(**{"dataset.max_length": 8}))


def test_of_a_trace_that_the_model_writes_nothing_is_left_out() -> None:
    """A model that was trained on traces without their last step writes such traces; the mini tokenizer has no line breaks in them."""
    trained = open_checkpoint("builtin:mini", device="cpu")
    asked = [own_example(EXAMPLE, 1)]
    found = explain(trained.reasoner(), trained.config, asked, Options("somewhere", say=lambda text: None))
    kept = found.questions[0].kept
    assert kept is not None
    assert ("".join(kept.tokens), kept.left_out, kept.written_by) == ("<<4+1=0>><<0-4=1>>", [], "model")
    assert found.questions[0].similarity is not None
    assert found.notes[1].startswith("no mean similarity: no question of a data set has a trace")


def test_a_question_without_any_trace_says_so() -> None:
    found = explain(make(), config(), [own_example(QUESTIONS[0], 1)], Options("somewhere", max_new_tokens=1, say=lambda text: None))
    assert found.questions[0].kept is None
    assert "no kept tokens for 1 of the 1 questions shown: there is no trace with a step to compress" in found.notes


def test_long_rows_of_a_data_set_are_left_out_and_counted() -> None:
    options = Options("somewhere", details=1, max_new_tokens=4, say=lambda text: None)
    lengths = [len(make().builder.question_ids(question)) for question in QUESTIONS]
    short = config(**{"dataset.max_length": max(lengths) - 1})
    kept = sum(length < max(lengths) for length in lengths)
    found = explain(make(), short, EXAMPLES, options)
    assert found.notes[0] == f"{len(lengths) - kept} of {len(lengths)} questions left out: empty, or longer than {max(lengths) - 1} tokens"
    assert found.interventions is not None
    assert found.interventions.questions == kept
    with pytest.raises(UserError, match="none of the 6 questions can be read; of the first: the question has"):
        explain(make(), config(**{"dataset.max_length": 8}), EXAMPLES, options)
    with pytest.raises(UserError, match=r"^the question has \d+ tokens"):
        explain(make(), short, [*EXAMPLES, own_example(QUESTIONS[lengths.index(max(lengths))], 1)], options)
