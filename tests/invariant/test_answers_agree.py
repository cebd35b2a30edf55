"""Everyone who asks a model reads the same answer from what it wrote: the first number behind the prompt that it was given, or behind
the last one that it wrote; results say how many answers were cut off or hold no number."""

import json
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest
import torch
from torch.nn.functional import one_hot

from helpers.tiny import PROMPT, lora_config, mini_builder, mini_examples, mini_model, mini_tokenizer
from kava.checkpoint import Trained
from kava.data.answers import extract_answer
from kava.data.example import Example
from kava.evaluate.accuracy import Evaluation, evaluate_accuracy
from kava.evaluate.evaluate import metrics_of
from kava.explain.questions import with_trace
from kava.generate import Reasoner
from kava.methods import METHODS
from kava.tools.playground.player import Player
from kava.tools.session import Session, answer_file

QUESTION = mini_examples(1)[0].question
EXAMPLES = [Example(QUESTION, (), gold, "x") for gold in ("4", "2")]


def saying(method: str, text: str, *, ends: bool = True) -> Reasoner:
    """A model that says this to every question: its passes are real, the logits of its head are not."""
    model, tokenizer = mini_model(method=method), mini_tokenizer()
    ids = tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id] * ends
    assert tokenizer.unk_token_id not in ids
    script = cycle(ids)
    model.backbone.logits = lambda hidden: one_hot(torch.tensor(next(script)), len(tokenizer)).float().expand(len(hidden), -1)  # type: ignore[method-assign]
    return Reasoner(model, mini_builder(), 4, 2)


def by_evaluation(reasoner: Reasoner, use_latent: bool) -> str | None:
    return evaluate_accuracy(reasoner, EXAMPLES[:1], batch_size=1, max_new_tokens=30, use_latent=use_latent).answered[0].prediction


def by_session(reasoner: Reasoner, use_latent: bool) -> str | None:
    session = Session(reasoner, 30, use_latent=use_latent)
    with session.console.capture() as capture:
        session.ask(QUESTION)
    return capture.get().split("answer: ")[1].split()[0]


def by_file(reasoner: Reasoner, use_latent: bool, path: Path) -> str | None:
    answer_file(reasoner, [QUESTION], str(path), batch_size=1, max_new_tokens=30, temperature=0.0, use_latent=use_latent)
    answer: str | None = json.loads(path.read_text())["answer"]
    return answer


def by_playground(reasoner: Reasoner, use_latent: bool) -> str | None:
    config = lora_config(**{"method": reasoner.model.method.name, "latent.num_tokens": 4, "evaluation.max_new_tokens": 30})
    player = Player(Trained(reasoner.model, mini_tokenizer(), config, "a test"), EXAMPLES[:1])
    return player._answers((4, 2) if use_latent else None)[1][0]


ASKING: dict[str, Callable[[Reasoner, bool], str | None]] = {
    "evaluation": by_evaluation, "session": by_session, "playground": by_playground,
}  # fmt: skip
WRITTEN = "<<1+1=2>>\nThe answer is: 3\nThe answer is: 4 apples . Tom has 2"


@pytest.mark.parametrize(
    ("method", "use_latent", "text", "answer"),
    [
        ("kava", True, "4 apples . Tom has 2 apples", "4"),
        ("kava", True, "4 The answer is: 2", "4"),
        ("kava", False, WRITTEN, "4"),
        ("codi", True, "4 4 4 2", "4"),
        ("no_cot", True, "4 apples . Tom has 2 apples", "4"),
        ("icot", True, "4 apples . Tom has 2 apples", "4"),
        ("full_cot", True, WRITTEN, "4"),
        ("full_cot", True, "Tom has 2 apples . 4", "4"),
    ],
)
def test_everyone_reads_the_same_answer(method: str, use_latent: bool, text: str, answer: str, tmp_path: Path) -> None:
    reasoner = saying(method, text)
    (generation,) = reasoner.generate([QUESTION], max_new_tokens=30, use_latent=use_latent)
    assert (generation.text.split(), generation.answer) == (mini_tokenizer().decode(generation.token_ids).split(), answer)
    assert by_file(reasoner, use_latent, tmp_path / "answers.jsonl") == answer
    for name, ask in ASKING.items():
        if name != "playground" or METHODS[method].uses_latents:
            assert ask(reasoner, use_latent) == answer, name
    if METHODS[method].uses_latents and not use_latent:
        traced = with_trace(reasoner, Example(QUESTION, (), "", "x"), 30)
        assert traced is not None
        assert traced.answer == answer


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("use_latent", [True, False])
def test_every_method_is_read_by_how_it_writes(method: str, use_latent: bool) -> None:
    reasoner = Reasoner(mini_model(method=method, spread=0.3), mini_builder("<never>"), 4, 2)
    written = method == "full_cot" or (METHODS[method].uses_latents and not use_latent)
    questions = [example.question for example in mini_examples(6)]
    for generation in reasoner.generate(questions, max_new_tokens=12, use_latent=use_latent):
        assert generation.answer == extract_answer(generation.text, PROMPT, after_prompt=not written)


def evaluated(text: str, *, ends: bool = True, limit: int = 30) -> Evaluation:
    return evaluate_accuracy(saying("no_cot", text, ends=ends), EXAMPLES, batch_size=2, max_new_tokens=limit)


def test_results_say_what_was_cut_off_and_what_holds_no_number() -> None:
    texts = (evaluated("4"), evaluated("4 apples", ends=False, limit=6), evaluated("apples"))
    whole, cut, empty = (metrics_of(evaluation, 0.001) for evaluation in texts)
    assert (whole.cut_off, whole.without_number, whole.correct, whole.correct_close) == (0, 0, 1, 1)
    assert (cut.cut_off, cut.without_number, cut.correct) == (2, 0, 1)
    assert (empty.cut_off, empty.without_number, empty.correct) == (0, 2, 0)
    assert [row.row()["cut_off"] for row in evaluated("4 apples", ends=False, limit=6).answered] == [True, True]
