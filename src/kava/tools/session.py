"""Question answering with a trained model: an interactive terminal session, or a file of questions."""

import contextlib
import io
import json
import secrets
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kava.checkpoint import Trained
from kava.config import Config
from kava.config.differences import flatten
from kava.data.sources.readers import BadRow, read_rows
from kava.errors import UserError
from kava.explain.questions import guess_reason
from kava.explain.readout import Readout, read_latents
from kava.generate import Generation, Reasoner
from kava.results import write_text

# Settings that affect the answers of a checkpoint.
_MATTERS = (
    "method", "model.name", "latent.num_tokens", "dataset.answer_prompt", "dataset.answer_separator", "dataset.answer_type",
    "dataset.question_suffix",
)  # fmt: skip
HELP = "commands: /latent on|off   /temp NUMBER   /trace (what the latents decode to)   /help   /quit"


def check_config(trained: Trained, config: Config) -> None:
    """Check that a configuration agrees with that of the checkpoint in every setting that affects inference.

    Raises:
        UserError: it differs; names the setting.
    """
    mine, theirs = flatten(trained.config.to_dict()), flatten(config.to_dict())
    for key in _MATTERS:
        # The fingerprint has already confirmed the base model; names cannot be compared if one of them is a local directory.
        if mine[key] != theirs[key] and not (key == "model.name" and any(map(is_directory, (mine[key], theirs[key])))):
            raise UserError(
                f"the checkpoint was trained with {key} {mine[key]!r}, but --config says {theirs[key]!r}; "
                "leave --config out or give the right one"
            )


def is_directory(name: object) -> bool:
    """Return whether a base model is given as a local directory."""
    return str(name).startswith(("/", ".", "~")) or Path(str(name)).is_dir()


class Session:
    """An interactive terminal session with one model; every question is answered independently.

    Args:
        reasoner: the model.
        max_new_tokens, temperature: generation settings.
        use_latent: reason in latents; False writes the chain of thought.
        config: configuration of the training, used to flag questions that the model cannot know.
    """

    def __init__(
        self,
        reasoner: Reasoner,
        max_new_tokens: int,
        temperature: float = 0.0,
        use_latent: bool = True,
        config: Config | None = None,
    ) -> None:
        self.reasoner = reasoner
        self.config = config
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.use_latent = use_latent
        self.last_question: str | None = None
        self.console = Console(highlight=False)

    def run(self) -> None:
        """Read questions from the terminal until /quit, Ctrl-C or the end of input."""
        # A shell starts background jobs with SIGINT ignored, and Python keeps it ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if isinstance(sys.stdin, io.TextIOWrapper):
            # A line in another encoding is refused as a question, and does not end the session.
            sys.stdin.reconfigure(errors="surrogateescape")
        with contextlib.suppress(ImportError):
            import readline as _  # noqa: F401  # arrow keys and earlier lines in input(); not on Windows
        method = self.reasoner.model.method
        thinks = f"{self.reasoner.num_latents} latents" if method.uses_latents else "no latents"
        self.console.print(f"[bold]kava[/bold]  {method.name}, {thinks}. Ask a question.  [dim]{HELP}[/dim]")
        while True:
            try:
                line = input("question> " if sys.stdin.isatty() else "").strip()
            except (EOFError, KeyboardInterrupt):
                self.console.print("\nbye")
                return
            if line == "/quit":
                self.console.print("bye")
                return
            if line:
                try:
                    self._handle(line)
                except UserError as error:
                    self.console.print(Text(str(error), style="red"))
                except KeyboardInterrupt:
                    self.console.print("stopped")

    def _handle(self, line: str) -> None:
        if not line.startswith("/"):
            self.ask(line)
            return
        command, _, argument = line.partition(" ")
        if command == "/latent" and argument in ("on", "off"):
            if not self.reasoner.model.method.uses_latents:
                raise UserError(f"method {self.reasoner.model.method.name} has no latents to switch")
            self.use_latent = argument == "on"
            self.console.print(f"latent reasoning {argument}")
        elif command == "/temp":
            self._set_temperature(argument)
        elif command == "/trace":
            self.trace()
        elif command == "/help":
            self.console.print(HELP)
        else:
            raise UserError(f"unknown command '{line}'; {HELP}")

    def _set_temperature(self, argument: str) -> None:
        try:
            temperature = float(argument)
        except ValueError:
            temperature = -1.0
        if not 0 <= temperature < float("inf"):
            raise UserError("/temp needs a number of at least 0, such as /temp 0.7")
        self.temperature = temperature
        self.console.print(f"temperature {temperature:g}")

    def ask(self, question: str) -> Generation:
        """Answer one question and print the answer, the forward passes, the tokens and the time."""
        self.last_question = question
        start = time.perf_counter()
        generation = self.reasoner.generate(
            [question],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=secrets.randbits(63) if self.temperature else 0,
            use_latent=self.use_latent,
        )[0]
        seconds = time.perf_counter() - start
        answer = generation.answer
        if generation.text != answer:
            self.console.print(Text(generation.text, style="dim"))
        cost = f"{generation.forward_passes} forward passes, {generation.generated_tokens} tokens, {seconds:.2f} s"
        self.console.print(Text(f"answer: {answer or '(no number)'}", style="bold").append(f"   {cost}", style="dim"))
        reason = guess_reason(self.reasoner.builder, self.config, question) if self.config else None
        if reason:
            self.console.print(Text(f"a guess: {reason}", style="yellow"))
        return generation

    def trace(self) -> None:
        """Print what the latents of the last question decode to."""
        if self.last_question is None:
            raise UserError("ask a question first, then /trace")
        if not self.reasoner.model.method.uses_latents:
            raise UserError(f"method {self.reasoner.model.method.name} has no latents to read")
        self.console.print(readout_table(read_latents(self.reasoner, self.last_question, top_k=1)))


def readout_table(readout: Readout) -> Table:
    """Return a table with the top token of every latent, a row per Jacobi iteration."""
    table = Table(title="what the latents decode to", show_lines=False, pad_edge=False)
    table.add_column("iteration", justify="right")
    table.add_column("latents 1 .. M")
    for name, latents in zip(readout.names, readout.tokens, strict=True):
        table.add_row(name, Text(" ".join(top[0] for top in latents)))
    return table


def answer_file(
    reasoner: Reasoner,
    questions: Iterable[str],
    output: str | None,
    *,
    batch_size: int,
    max_new_tokens: int,
    temperature: float,
    use_latent: bool,
    config: Config | None = None,
) -> None:
    """Answer questions in batches and write one JSON object per line, to a file or to standard output.

    Every question gets a row: a blank one has no answer, and one that the model cannot know has a field `guess` with the reason.
    """
    questions = list(questions)
    asked = [question for question in questions if question.strip()]
    if not asked:
        raise UserError("there is no question: give --questions 'How many ...?' or an --input_file with one question a line")
    generations = iter(
        reasoner.generate(asked, batch_size=batch_size, max_new_tokens=max_new_tokens, temperature=temperature, use_latent=use_latent)
    )
    lines = []
    for question in questions:
        row: dict[str, Any] = {"question": question, "answer": None, "text": "", "forward_passes": 0, "generated_tokens": 0}
        if question.strip():
            generation = next(generations)
            row |= {name: getattr(generation, name) for name in row if name != "question"}
            reason = guess_reason(reasoner.builder, config, question) if config else None
            row |= {"guess": reason} if reason else {}
        lines.append(json.dumps(row, ensure_ascii=False))
    text = "\n".join(lines) + "\n"
    if output is None:
        print(text, end="")
    else:
        write_text(output, text)
        print(f"written: {output} ({len(lines)} answers)")


def read_questions(path: str) -> list[str]:
    """Return the questions of a file, blank lines included: one per line, or rows of a data file with a field `question`.

    Raises:
        UserError: the file cannot be read, or a row has no question.
    """
    questions = []
    for place, row in read_rows(Path(path), keep_blank=True):
        fields = {} if isinstance(row, BadRow) else row
        question = fields.get("question", fields.get("text"))
        if not isinstance(question, str) or ("question" not in fields and question.startswith("{")):
            raise UserError(f"input file {path}, {place}: not a JSON object with a 'question'; give all lines the same form")
        questions.append(question)
    return questions
