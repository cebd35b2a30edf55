"""The server's start and end: a port, uvicorn, and signals."""

import signal
import socket
import sys
from types import FrameType
from typing import Any

import uvicorn

from kava.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; before a model is loaded, which takes longer.

    Raises:
        UserError: the port is taken, or the address is none of this machine's.
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


def serve(app: Any, name: str, listener: socket.socket, shutdown_seconds: int) -> None:
    """Answer requests until a signal comes; answers that are on their way are finished first."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=shutdown_seconds))
    # Whoever reads the line may ask at once, and waits until the server has begun.
    listener.listen()
    host, port = listener.getsockname()[:2]
    print(f"{name}: http://{host}:{port}/v1   (Ctrl-C ends it)", flush=True)
    # uvicorn ends in good order on these signals, and then raises them once more for whoever else listens.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    server.run(sockets=[listener])


def _leave(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)
