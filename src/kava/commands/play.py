"""`kava play`."""

from dataclasses import dataclass

from kava.commands.options import Checkpoint, Overridable, Positional


@dataclass
class Play(Overridable):
    """Serve a local web page to ask a trained model, watch its latents, and change T and M."""

    checkpoint: Positional[Checkpoint]
    dataset: str | None = None
    """Source of the sample questions: a name in evaluation.datasets (default: the first), a file, a directory or a hub name."""
    max_samples: int = 200
    """Number of sample questions for measuring settings of M and T."""
    port: int | None = None
    """Port on the loopback address (default: the first free port from 7860 on)."""

    def run(self) -> None:
        from kava.checkpoint import open_checkpoint
        from kava.errors import at_least
        from kava.evaluate.questions import load_questions
        from kava.tools.playground.page import serve
        from kava.tools.playground.player import Player

        at_least(1, max_samples=self.max_samples, port=self.port)
        trained = open_checkpoint(self.checkpoint, self.overrides)
        name = self.dataset or next(iter(trained.config.evaluation.datasets))
        examples = load_questions(trained.config, name, None, self.max_samples).examples
        serve(Player(trained, examples), self.port)
