"""What a check is, and how checks run: one after the other, none stopped by the failure of another."""

import importlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from kava.tools.smoke.lab import Lab

Status = Literal["ok", "info", "FAILED"]

REINSTALL = "install the pinned versions: pip install -r requirements.txt"
REPORT = f"{REINSTALL}; if it stays, please report it together with this output"


@dataclass(frozen=True)
class Information:
    """What a check has to say where there is nothing to pass or fail."""

    text: str


class CheckFailedError(Exception):
    """A check measured something wrong; the message says what."""


@dataclass(frozen=True)
class Check:
    """One component.

    Attributes:
        name: a word or two.
        function: `module:name` in `kava.tools.smoke`; takes the lab, returns what it measured. Imported only when the check runs, so
            that a package that cannot be imported fails this check and not the whole test.
        cure: what to do where it fails.
    """

    name: str
    function: str
    cure: str = REPORT


@dataclass(frozen=True)
class Outcome:
    """One line of the smoke test."""

    name: str
    status: Status
    measured: str
    seconds: float
    cure: str


def run_checks(checks: Iterable[Check], lab: "Lab") -> Iterator[Outcome]:
    """Run every check and yield its outcome as soon as it is known."""
    for check in checks:
        started = time.perf_counter()
        status, measured = _attempt(check, lab)
        yield Outcome(check.name, status, measured, time.perf_counter() - started, check.cure if status == "FAILED" else "")


def close_to_zero(difference: float, allowed: float, what: str) -> str:
    """The sentence about a difference that should be rounding only.

    Raises:
        CheckFailedError: it is larger than allowed, or not a number.
    """
    if not difference <= allowed:
        raise CheckFailedError(f"{what}: off by {difference:.1e}, allowed {allowed:.0e}")
    return f"{what}: off by {difference:.1e}"


def _attempt(check: Check, lab: "Lab") -> tuple[Status, str]:
    try:
        module, _, name = check.function.partition(":")
        run: Callable[[Lab], str | Information] = getattr(importlib.import_module(f"kava.tools.smoke.{module}"), name)
        found = run(lab)
    except CheckFailedError as failure:
        return "FAILED", str(failure)
    except Exception as error:  # whatever is broken, the other checks still run
        lines = str(error).strip().splitlines() or ["no message"]
        return "FAILED", f"{type(error).__name__}: {lines[0]}"
    return ("info", found.text) if isinstance(found, Information) else ("ok", found)
