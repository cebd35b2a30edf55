"""A `python` without five seconds of imports: the program `python()` runs a script, `-m kava`, a launcher or a process of
multiprocessing in a fork of one process.

What a test sees is what a process of its own would do: arguments, directory, environment, open files, signals, exit code. Only what a
library reads while it is imported (HF_HOME, OMP_NUM_THREADS) is that of the test run. Other words than those go to Python itself.
Three parts: the program is `client` here, a `python -I -S` of some milliseconds; `serve` is the process that has imported everything;
`python` starts that one, once per test process.
"""

import array
import contextlib
import json
import os
import socket
import sys

PARENT = "KAVA_PARENT"
SIGNALS = (1, 2, 10, 15)
LONGEST = 1 << 20
RUN_HERE = ("kava", "torch.distributed.run", "accelerate.commands.launch")
# What a process of multiprocessing is started with, before its numbers.
SPAWNED = "from multiprocessing.spawn import spawn_main;"
MODULES = (
    "kava.cli", "kava.commands.train", "kava.commands.evaluate", "kava.commands.inference", "kava.train.train", "kava.evaluate.evaluate",
    "kava.config.quick_test", "kava.tools.session", "kava.explain.explain", "kava.experiment.multi_seed", "kava.experiment.reproduce",
    "kava.report.page", "kava.tools.bench.workload", "kava.tools.bench.decoding", "tyro",
    "transformers.models.llama.modeling_llama", "torch.utils.tensorboard", "torch._dynamo", "torch.distributed.launcher.api",
    "accelerate.commands.config", "tyro._backends._tyro_backend",
    "pandas", "pyarrow.parquet", "kava.explain.pictures", "matplotlib.backends.backend_agg", "matplotlib.figure", "mpl_toolkits.mplot3d",
)  # fmt: skip


def client(address: str, words: list[str]) -> None:
    """Have the words run, pass signals on, and end as they ended."""
    flags = []
    while words[0] in ("-u", "-B"):
        flags.append(words[0])
        words = words[1:]
    spawned = words[0] == "-c" and words[1].startswith(SPAWNED)
    if not (spawned or words[0].endswith(".py") or (words[0] == "-m" and words[1] in RUN_HERE)):
        os.execv(sys.executable, [sys.executable, *flags, *words])
    import signal

    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    environment = dict(os.environ)
    if environment.pop(PARENT, None):
        # `kava.runtime.processes.end_with_parent`: told to end when the runner is gone. The fork is the server's child: ours to do.
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    files = [int(name) for name in os.listdir("/proc/self/fd")]
    files = [file for file in files if file != connection.fileno() and os.path.exists(f"/proc/self/fd/{file}")]
    ignored = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN]
    request = {
        "words": words, "directory": os.getcwd(), "environment": environment, "files": files, "ignored": ignored,
        "nice": os.nice(0), "at_once": "-u" in flags or bool(environment.get("PYTHONUNBUFFERED")),
    }  # fmt: skip
    text = json.dumps(request).encode() + b"\n"
    packed = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
    sent = connection.sendmsg([text], [packed])
    connection.sendall(text[sent:])
    answers = connection.makefile("r")
    process = int(answers.readline())
    for number in SIGNALS:  # what is ignored may be listened to later: the fork knows
        signal.signal(number, lambda number, _frame: os.kill(process, number))
    code = int(answers.readline())
    if code < 0:
        with contextlib.suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def receive(connection: socket.socket) -> tuple[dict, list[int]]:
    """A client's request, and its open files."""
    text, files = b"", array.array("i")
    while not text.endswith(b"\n"):
        part, extra, _, _ = connection.recvmsg(LONGEST, socket.CMSG_SPACE(64 * files.itemsize))
        text += part
        for _, _, data in extra:
            files.frombytes(data)
        if not part:
            raise ConnectionError("the client is gone")
    return json.loads(text), list(files)


def become(request: dict, files: list[int], program: str) -> None:
    """In a fork: take over the client's surroundings, run its words, and leave."""
    import atexit
    import fcntl
    import io
    import multiprocessing.spawn
    import random
    import runpy
    import signal
    import threading

    os.setsid()
    os.setpriority(os.PRIO_PROCESS, 0, request["nice"])
    kept = [fcntl.fcntl(file, fcntl.F_DUPFD, 1000) for file in files]
    os.closerange(0, 1000)
    for file, number in zip(kept, request["files"], strict=True):
        os.dup2(file, number)
        os.close(file)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else signal.SIG_DFL)
    if 2 not in request["ignored"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8").partition(":")
    sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115
    words, at_once = request["words"], request["at_once"] or os.isatty(1)
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding, errors or "strict", line_buffering=at_once)  # noqa: SIM115
    sys.stderr = io.TextIOWrapper(open(2, "wb", closefd=False), encoding, "backslashreplace", line_buffering=True)  # noqa: SIM115
    sys.executable = program
    multiprocessing.spawn.set_executable(program)
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path and path not in sys.path]
    random.seed()
    code = 1
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, request["directory"])
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(words[1])
        else:
            sys.argv = words
            sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def serve(address: str, program: str) -> None:
    """Fork for each client until standard input ends."""
    import importlib
    import select
    import signal

    for name in MODULES:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    # The file of a connection -> (connection, process, the file that tells of its end).
    running: dict[int, tuple[socket.socket, int, int]] = {}
    while True:
        ready, _, _ = select.select([0, listener, *running, *(entry[2] for entry in running.values())], [], [])
        if 0 in ready:
            break
        for number, (connection, process, handle) in list(running.items()):
            if number in ready and handle not in ready:
                os.kill(process, signal.SIGKILL)  # its client is gone: as if it had been killed itself
            if number in ready or handle in ready:
                code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                with contextlib.suppress(OSError):
                    connection.sendall(f"{code}\n".encode())
                os.close(handle)
                connection.close()
                del running[number]
        if listener in ready:
            connection, _ = listener.accept()
            try:
                request, files = receive(connection)
            except (OSError, ValueError):
                connection.close()
                continue
            process = os.fork()
            if process == 0:
                become(request, files, program)
            for file in files:
                os.close(file)
            running[connection.fileno()] = (connection, process, os.pidfd_open(process))
            with contextlib.suppress(OSError):
                connection.sendall(f"{process}\n".encode())
    for _, process, _ in running.values():
        os.kill(process, signal.SIGKILL)
    # Here and not where it was made: a test worker leaves without cleaning up.
    for path in (address, program):
        os.unlink(path)
    os.rmdir(os.path.dirname(program))


def _start() -> str:
    import atexit
    import shlex
    import subprocess
    import tempfile
    from pathlib import Path

    from helpers.signals import listen

    place = Path(tempfile.mkdtemp(prefix="kava-python-"))
    program, address, here = place / "python", place / "socket", Path(__file__).resolve()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S {shlex.quote(str(here))} client {address} "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(here.parents[2] / "src")}
    server = subprocess.Popen(
        [sys.executable, str(here), "serve", str(address), str(program)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=listen,
    )  # fmt: skip

    def close() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait(timeout=60)

    atexit.register(close)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    return str(program)


_STARTED: list[str] = []


def python() -> str:
    """The program; its process is started with the first use, and ends with this one. Linux only: elsewhere it is Python itself."""
    if not sys.platform.startswith("linux"):
        return sys.executable
    if not _STARTED:
        _STARTED.append(_start())
    return _STARTED[0]


if __name__ == "__main__":
    if sys.argv[1] == "client":
        client(sys.argv[2], sys.argv[3:])
    else:
        sys.path.pop(0)  # tests/helpers is no place to import from
        serve(sys.argv[2], sys.argv[3])
