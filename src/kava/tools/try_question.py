"""`kava try`: answer one question with latents and with a written chain of thought, on 80 columns and about 20 lines."""

import time
from textwrap import wrap

from rich.console import Console
from rich.text import Text

from kava.checkpoint import Trained
from kava.data.mini.problems import EXAMPLE
from kava.errors import UserError
from kava.explain.questions import Solution, checked_question, guess_reason, solution
from kava.explain.readout import Readout, read_latents
from kava.generate import Generation, Reasoner
from kava.methods import WITH_LATENTS

WIDTH = 80
_SURE = 0.5
_ITERATION = 10


def show(trained: Trained, name: str, question: str | None = None) -> None:
    """Answer a question and print the decoded latents, both answers and their cost.

    Args:
        trained: a model of a method with latents.
        name: the model as the user named it.
        question: the question; None takes the example of the built-in problems.

    Raises:
        UserError: the method has no latents, or the question is empty or too long.
    """
    if not trained.model.method.uses_latents:
        raise UserError(f"method {trained.model.method.name} has no latents to show; give a checkpoint of {WITH_LATENTS}")
    config = trained.config
    reasoner = trained.reasoner()
    question = EXAMPLE if question is None else checked_question(reasoner, question, config)
    console = Console(width=WIDTH, highlight=False)
    console.print(Text("\n".join(wrap(" ".join(question.split()), WIDTH)), style="bold"))
    console.print()
    for line in grid(read_latents(reasoner, question, top_k=1)):
        console.print(line)
    console.print()
    gold = solution(config, question)
    for title, use_latent in (("in latents", True), ("in words", False)):
        generation, seconds = _timed(reasoner, question, use_latent, config.evaluation.max_new_tokens)
        console.print(_row(title, generation, seconds, gold, trained))
    if gold is not None:
        console.print(Text("\n".join(wrap(f"{'by hand':<12}{gold.answer:<6}{'; '.join(gold.steps)}", WIDTH, subsequent_indent=" " * 18))))
    reason = guess_reason(trained.builder, config, question)
    if reason:
        console.print(Text("\n".join(wrap(f"a guess: {reason}", WIDTH)), style="yellow"))
    console.print()
    console.print(Text(f'your own question: kava try "..."   a page to play with: kava play {name}', style="dim"))


def grid(readout: Readout) -> list[Text]:
    """Return the decoded latents: a title, then a line per iteration with as many latents as fit; tokens below 50 % are dim."""
    shown = min(len(readout.tokens[0]), (WIDTH - _ITERATION) // 4)
    cell = min((WIDTH - _ITERATION) // shown, 7)
    lines = [Text(f"what the latents decode to, 1 to {shown} of {len(readout.tokens[0])} (dim: less than half sure)")]
    for name, latents, chances in zip(readout.names, readout.tokens, readout.probabilities, strict=True):
        line = Text(f"{name:<{_ITERATION}}")
        for tokens, sure in zip(latents[:shown], chances[:shown], strict=True):
            line.append(f"{_short(tokens[0], cell - 1):<{cell}}", style="" if sure[0] >= _SURE else "dim")
        line.rstrip()
        lines.append(line)
    return lines


def _short(token: str, width: int) -> str:
    """Cut a token to the width of a cell; angle brackets, as in <eos>, are removed first."""
    return token[:width] if len(token) <= width else token.strip("<>")[:width]


def _timed(reasoner: Reasoner, question: str, use_latent: bool, max_new_tokens: int) -> tuple[Generation, float]:
    """Return the answer and the seconds of the fastest of three runs after a warm-up."""
    best = float("inf")
    for number in range(4):
        started = time.perf_counter()
        generation = reasoner.generate([question], max_new_tokens=max_new_tokens, use_latent=use_latent)[0]
        best = min(best, time.perf_counter() - started if number else best)
    return generation, best


def _row(title: str, generation: Generation, seconds: float, gold: Solution | None, trained: Trained) -> Text:
    answer = generation.answer
    line = Text(f"{title:<12}")
    line.append(f"{answer or '-':<6}", style="bold")
    if gold is not None:
        right = gold.agrees(answer)
        line.append(f"{'right' if right else 'wrong':<7}", style="green" if right else "red")
    line.append(f"{generation.forward_passes} passes, {1000 * seconds:.0f} ms", style="dim")
    written = " ".join(generation.text.rpartition(trained.config.dataset.answer_prompt)[0].split())
    if written:
        line.append(f"   wrote {written}")
    line.truncate(WIDTH, overflow="ellipsis")
    return line
