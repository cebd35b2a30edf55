"""The list of checks and the smoke test, which runs all of them in order, even after one has failed."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text

from kava.tools.smoke.lab import CheckFailedError, Information, Lab

REINSTALL = "install the pinned versions: pip install -r requirements.txt"


@dataclass(frozen=True)
class Check:
    """A check of one component.

    Attributes:
        name: short name of the component.
        function: `module:name` in `kava.tools.smoke`; takes the lab, returns what it measured. Imported only when the check runs, so
            that a package that cannot be imported fails this check and not the whole test.
        cure: advice that is printed if the check fails.
    """

    name: str
    function: str
    cure: str = f"{REINSTALL}; if it still fails, please report it together with this output"


CHECKS = (
    Check("python", "machine:python_version", "make an environment with a newer Python: make BASE_PYTHON=python3.11 setup"),
    Check("packages", "machine:packages", REINSTALL),
    Check("optional packages", "machine:optional_packages"),
    Check(
        "device",
        "device:device",
        "install the torch build for this machine (https://pytorch.org/get-started/locally/), or set system.device to cpu",
    ),
    Check("attention backends", "device:attention_backends"),
    Check("eviction", "method:eviction"),
    Check("loss functions", "method:losses"),
    Check("training losses", "method:training_losses"),
    Check("padding", "method:padding"),
    Check("jacobi", "method:jacobi"),
    Check("training", "training:training"),
    Check("generation", "training:generation"),
    Check("save and load", "training:save_and_load"),
    Check(
        "configurations",
        "data:configurations",
        "correct the key that is named, restore the file (git checkout configs suites), or remove your copy: the package has its own",
    ),
    Check("built-in data", "data:built_in_data"),
    Check("hub", "machine:hub_access"),
    Check(
        "local data",
        "data:local_data",
        "point KAVA_DATA_DIR at the directory that holds gsm8k_test.jsonl, gsm8k_hard.jsonl and svamp.json, or unset it",
    ),
)
_STYLES = {"ok": "green", "info": "cyan", "FAILED": "bold red"}


def smoke_test() -> int:
    """Run every check and print a line for each; return the exit code, 1 if any check failed."""
    console, started = Console(highlight=False), time.perf_counter()
    counts = dict.fromkeys(_STYLES, 0)
    with TemporaryDirectory(prefix="kava-smoke-") as directory:
        lab = Lab(Path(directory))
        for check in CHECKS:
            began = time.perf_counter()
            status, measured = run_check(check, lab)
            counts[status] += 1
            seconds = (f"{time.perf_counter() - began:6.2f} s  ", "dim")
            console.print(Text.assemble((f"{status:<7}", _STYLES[status]), f"{check.name:<19}", seconds, measured), soft_wrap=True)
            if status == "FAILED":
                console.print(Text(f"       cure: {check.cure}", style="yellow"), soft_wrap=True)
    console.print(
        f"{len(CHECKS)} checks in {time.perf_counter() - started:.1f} s: "
        f"{counts['ok']} ok, {counts['info']} for information, {counts['FAILED']} failed"
    )
    return 1 if counts["FAILED"] else 0


def run_check(check: Check, lab: Lab) -> tuple[str, str]:
    """Run a check; return its status ("ok", "info" or "FAILED") and what it measured or what went wrong."""
    module, _, name = check.function.partition(":")
    try:
        run: Callable[[Lab], str] = getattr(importlib.import_module(f"kava.tools.smoke.{module}"), name)
        found = run(lab)
    except CheckFailedError as failure:
        return "FAILED", str(failure)
    except Exception as error:  # the other checks still run
        lines = str(error).strip().splitlines() or ["no message"]
        return "FAILED", f"{type(error).__name__}: {lines[0]}"
    return "info" if isinstance(found, Information) else "ok", found
