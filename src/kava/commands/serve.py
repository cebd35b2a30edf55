"""`kava serve`."""

from dataclasses import dataclass

from kava.commands.options import Checkpoint, Overridable, Positional


@dataclass
class Serve(Overridable):
    """Serve a trained model through an OpenAI-compatible API: POST /v1/chat/completions, /v1/completions.

    kava serve builtin:mini
    """

    checkpoint: Positional[Checkpoint]
    name: str | None = None
    """Model name in the API (default: the checkpoint as given)."""
    host: str = "127.0.0.1"
    """Address to listen on. There is no authentication: anyone who can reach it can use the model."""
    port: int = 8000
    """Port to listen on; 0: any free port."""
    batch_size: int = 32
    """Maximum number of waiting questions that are answered in one batch."""
    max_new_tokens: int | None = None
    """Upper limit for the tokens of an answer, whatever a request asks for (default: evaluation.max_new_tokens)."""
    waiting: int = 256
    """Maximum number of waiting questions; further requests get an error and should be retried later."""
    shutdown_seconds: int = 10
    """Seconds that answers in progress may still take when the server shuts down; waiting questions are refused at once."""

    def run(self) -> None:
        from kava.checkpoint import open_checkpoint
        from kava.errors import at_least
        from kava.runtime.optional_packages import require
        from kava.runtime.stage import set_progress_stream

        at_least(1, batch_size=self.batch_size, waiting=self.waiting, max_new_tokens=self.max_new_tokens)
        at_least(0, port=self.port, shutdown_seconds=self.shutdown_seconds)
        for package in ("fastapi", "uvicorn"):
            require(package, "kava serve", "ask with kava inference")
        from kava.tools.serve.app import build_app
        from kava.tools.serve.batching import Batcher
        from kava.tools.serve.server import listen, serve

        listener = listen(self.host, self.port)
        trained = open_checkpoint(self.checkpoint, self.overrides)
        # No progress lines while requests are answered.
        set_progress_stream(None)
        batcher = Batcher(trained.reasoner(), self.batch_size, self.waiting)
        name = self.name or self.checkpoint
        serve(build_app(trained, name, batcher, self.max_new_tokens), batcher, name, listener, self.shutdown_seconds)
