"""Start and shutdown of the server: the socket, uvicorn and signals."""

import asyncio
import signal
import socket
import sys
from types import FrameType
from typing import Any

import uvicorn

from kava.errors import UserError
from kava.tools.serve.batching import Batcher

SPARE_SECONDS = 1
"""Seconds to send the last responses."""


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket. Called before the model is loaded, which is slow, so that a taken port is reported at once.

    Raises:
        UserError: the port is taken, or the address does not belong to this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"kava serve cannot listen on {host}, port {port} ({reason}); choose another --port or --host") from None
    return listener


class Server(uvicorn.Server):
    """A server that tells its clients when it shuts down.

    Queued questions are refused at once. Answers in progress get up to `shutdown_seconds` to finish and are then refused too, before
    uvicorn's own limit, which cancels requests without a response. A second Ctrl-C does not wait for them.
    """

    def __init__(self, app: Any, batcher: Batcher, shutdown_seconds: int) -> None:
        limit = shutdown_seconds + SPARE_SECONDS
        super().__init__(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=limit))
        self.batcher = batcher
        self.shutdown_seconds = shutdown_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn at a signal."""
        super().handle_exit(sig, frame)
        if self.force_exit:
            # From Python 3.12 on, uvicorn waits for open connections all the same.
            self.batcher.stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn after the signal."""
        self.batcher.close()
        asyncio.get_running_loop().call_later(self.shutdown_seconds, self.batcher.stop)
        await super().shutdown(sockets)
        self.batcher.stop()
        await asyncio.to_thread(self.batcher.join)
        # After a second Ctrl-C, responses may not have been sent yet.
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=SPARE_SECONDS)


def serve(app: Any, batcher: Batcher, name: str, listener: socket.socket, shutdown_seconds: int) -> None:
    """Serve requests until SIGINT or SIGTERM; see `Server`."""
    server = Server(app, batcher, shutdown_seconds)
    # Listen before printing the address: a client that reads it may connect at once, and waits until the server has started.
    listener.listen()
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"{name}: http://{host}:{port}/v1   (Ctrl-C ends it)", flush=True)
    # uvicorn shuts down gracefully on these signals and then raises them again for the previous handlers.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    server.run(sockets=[listener])


def _leave(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)
