"""Runs `kava` commands in forks of one process that has imported everything: real processes, real signals, no five seconds of imports.

Reads one JSON request a line from standard input and answers each with one JSON line:

    {"words": ["train", ...], "output": "log.txt", "kill_after": 0.4, "signal": 9, "fault": ["disk", 17], "counts": "counts.json"}

`kill_after`: seconds until `signal` is sent from outside. `fault`: the process, not one of its workers, sends itself SIGKILL (or the
third entry) at the n-th event of a kind. `kill_worker`: true sends SIGKILL to its first worker. `counts`: where the process writes how
many events of each kind it had.
"""

import importlib
import json
import os
import random
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forked_python import MODULES  # beside this program

# Event kind -> the functions whose calls are counted.
EVENTS = {
    "disk": ["os:fsync", "os:rename", "os:replace", "os:unlink", "os:mkdir", "torch:save", "safetensors.torch:save_file"],
    "evaluation": ["kava.generate:choose_token"],
    "backward": ["torch.autograd:backward"],
}


class Fault:
    """Counts events in a fork and ends it at one of them."""

    def __init__(self, kind: str | None, number: int, signal_number: int) -> None:
        self.counts: Counter[str] = Counter()
        self.process = os.getpid()
        self.kind, self.number, self.signal = kind, number, signal_number

    def watch(self) -> None:
        for kind, names in EVENTS.items():
            for name in names:
                module_name, _, attribute = name.partition(":")
                module = importlib.import_module(module_name)
                setattr(module, attribute, self._counted(kind, getattr(module, attribute)))

    def _counted(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.counts[kind] += 1
            if kind == self.kind and self.counts[kind] == self.number and os.getpid() == self.process:
                os.kill(os.getpid(), self.signal)
            return function(*arguments, **named)

        return counted


def child(request: dict[str, Any]) -> None:
    """Run one command in this (forked) process and leave it."""
    log = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    for name, value in request.get("environment", {}).items():
        os.environ[name] = value
    random.seed()
    kind, number, *rest = request.get("fault") or [None, 0]
    fault = Fault(kind, number, rest[0] if rest else signal.SIGKILL)
    fault.watch()
    from kava.cli import main

    sys.argv = ["kava", *request["words"]]
    code: Any = 1
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback

        traceback.print_exc()
    if request.get("counts"):
        Path(request["counts"]).write_text(json.dumps(fault.counts))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def wait_for(process: int, request: dict[str, Any]) -> dict[str, Any]:
    """Send the asked signal at its time, and wait for the end."""
    started = time.monotonic()
    # pidfd: sleeps until the process ends or its time is up, so that the moment of the kill is not rounded to a polling interval.
    handle = os.pidfd_open(process)
    if request.get("kill_after") is not None and not select.select([handle], [], [], request["kill_after"])[0]:
        os.kill(process, request.get("signal", signal.SIGKILL))
    if request.get("kill_worker"):
        children = Path(f"/proc/{process}/task/{process}/children")
        # Other children, such as git's, come alone.
        while len(workers := children.read_text().split()) < 2:
            assert not select.select([handle], [], [], 0.01)[0], "it ended without a worker"
        os.kill(int(workers[0]), signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    os.close(handle)
    return {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - started}


def serve() -> None:
    """Answer requests until standard input ends."""
    for name in MODULES:
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            child(request)
        print(json.dumps(wait_for(process, request)), flush=True)


if __name__ == "__main__":
    serve()
