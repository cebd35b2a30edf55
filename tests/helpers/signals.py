"""Signals in tests that may themselves run under nohup, or as a background job of a shell."""

import signal


def listen() -> None:
    """Hear SIGINT and SIGHUP again, which such a parent had its children ignore; to be called in a child before its program."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
