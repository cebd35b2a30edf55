"""`kava try`."""

from dataclasses import dataclass

from kava.commands.options import Positional


@dataclass
class FirstAnswer:
    """Ask the trained mini model of the package one question; show what its latents decode to and the chain of thought it writes."""

    question: Positional[str | None] = None
    """Your own question (default: an example)."""
    checkpoint: str = "builtin:mini"
    """A checkpoint of a method with latents, or the directory of a run that has a best_checkpoint."""

    def run(self) -> None:
        from kava.checkpoint import open_checkpoint
        from kava.tools.try_question import show

        show(open_checkpoint(self.checkpoint), self.checkpoint, self.question)
