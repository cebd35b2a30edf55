"""`kava serve`."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import tyro


@dataclass
class Serve:
    """Answer OpenAI's chat and completions requests with a trained model: POST /v1/chat/completions, /v1/completions.

    kava serve builtin:mini
    """

    checkpoint: Annotated[str, tyro.conf.Positional]
    """A checkpoint, or the directory of a run that has a best_checkpoint."""
    name: str | None = None
    """What clients call the model (default: the checkpoint as given)."""
    host: str = "127.0.0.1"
    """Address to listen on. Whoever reaches it can ask: there are no keys."""
    port: int = 8000
    """Port to listen on; 0: a free one."""
    batch_size: int = 32
    """Questions that wait together are answered together, at most so many."""
    max_new_tokens: int | None = None
    """Tokens of an answer at most, whatever a request asks for (default: evaluation.max_new_tokens)."""
    waiting: int = 256
    """Questions that may wait; more are told to come again."""
    shutdown_seconds: int = 10
    """How long answers that are on their way may take when the server is told to end."""

    overrides: ClassVar[dict[str, Any]] = {}

    def run(self) -> None:
        from kava.checkpoint import open_checkpoint
        from kava.errors import at_least
        from kava.runtime.optional_packages import require
        from kava.runtime.stage import speak_on

        at_least(1, batch_size=self.batch_size, waiting=self.waiting, max_new_tokens=self.max_new_tokens)
        at_least(0, port=self.port, shutdown_seconds=self.shutdown_seconds)
        for package in ("fastapi", "uvicorn"):
            require(package, "kava serve", "ask with kava inference")
        from kava.tools.serve.app import build_app
        from kava.tools.serve.batching import Batcher
        from kava.tools.serve.server import listen, serve

        listener = listen(self.host, self.port)
        trained = open_checkpoint(self.checkpoint, self.overrides)
        # A request is answered, not commented on.
        speak_on(None)
        batcher = Batcher(trained.reasoner(), self.batch_size, self.waiting)
        name = self.name or self.checkpoint
        serve(build_app(trained, name, batcher, self.max_new_tokens), name, listener, self.shutdown_seconds)
