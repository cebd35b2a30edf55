"""Provenance of a result: code, packages, machine and command, for every result file.

    result.provenance = collect()

Nothing personal is recorded: no host name, no user name; the home directory is written as `~`.
"""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from kava import __version__
from kava.runtime.installed import version
from kava.runtime.variables import number

PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "datasets", "numpy")
# Timeout for git, which may be slow on a network drive; without an answer in that time the commit is left out.
# Read at import, so that an invalid value is reported before hours of work and not after them.
GIT_SECONDS = number("KAVA_GIT_SECONDS", 10.0, "seconds")


def collect(command_line: Sequence[str] | None = None, wall_seconds: float | None = None) -> dict[str, Any]:
    """Return commit, package versions, hardware, command line (default: this process's) and time as plain YAML values.

    `commit` and `dirty` are null outside a git checkout of this package; `gpus` is empty unless torch is loaded and sees some.
    """
    commit, dirty = _commit_and_dirty()
    return {
        "command_line": _command(sys.argv if command_line is None else command_line),
        "commit": commit,
        "dirty": dirty,
        "packages": {"kava": __version__} | {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "gpus": _gpus(),
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "wall_seconds": None if wall_seconds is None else round(wall_seconds, 3),
    }


def _command(words: Sequence[str]) -> str:
    if not words:
        return ""
    # "~" for a user without one.
    home = os.path.expanduser("~")
    shown = [Path(words[0]).name, *words[1:]]
    # A home of "/" (containers) would turn every slash into a tilde.
    return shlex.join(word.replace(home, "~") if len(home) > 1 else word for word in shown)


def _commit_and_dirty() -> tuple[str | None, bool | None]:
    here = Path(__file__).resolve()
    # An installed copy may be inside the checkout of another project (in a .venv): only a tracked file belongs to our checkout.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None, None
    commit = _git(here.parent, "rev-parse", "HEAD")
    status = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
    if commit is None or status is None:
        return None, None
    return commit, bool(status)


def _git(directory: Path, *arguments: str) -> str | None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments],
            capture_output=True, text=True, timeout=GIT_SECONDS, env=environment, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpus() -> list[str]:
    # Importing torch takes seconds, and a process that did not load it used no GPU.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [str(torch.cuda.get_device_name(index)) for index in range(torch.cuda.device_count())]
