"""The list of checks, and the smoke test itself."""

import time

from rich.console import Console
from rich.text import Text

from kava.tools.smoke.check import REINSTALL, Check, Outcome, run_checks
from kava.tools.smoke.lab import open_lab

NEWER_PYTHON = "make an environment with a newer Python: make BASE_PYTHON=python3.11 setup"
DEVICE = "install the torch build for this machine (https://pytorch.org/get-started/locally/), or set system.device to cpu"
CONFIGURATIONS = "mend the key that is named, or take the file back: git checkout configs suites, or kava configs --copy"
LOCAL_DATA = "point KAVA_DATA_DIR at the directory that holds gsm8k_test.jsonl, gsm8k_hard.jsonl and svamp.json, or unset it"

CHECKS = (
    Check("python", "environment:python_version", NEWER_PYTHON),
    Check("packages", "environment:packages", REINSTALL),
    Check("optional packages", "environment:optional_packages"),
    Check("device", "device:device", DEVICE),
    Check("attention backends", "device:attention_backends"),
    Check("eviction", "method:eviction"),
    Check("loss functions", "method:losses"),
    Check("training losses", "method:training_losses"),
    Check("padding", "method:padding"),
    Check("jacobi", "method:jacobi"),
    Check("training", "chain:training"),
    Check("generation", "chain:generation"),
    Check("save and load", "chain:save_and_load"),
    Check("configurations", "data:configurations", CONFIGURATIONS),
    Check("built-in data", "data:built_in_data"),
    Check("hub", "data:hub_access"),
    Check("local data", "data:local_data", LOCAL_DATA),
)
_STYLES = {"ok": "green", "info": "cyan", "FAILED": "bold red"}


def smoke_test() -> int:
    """Run every check, a line each; returns the exit code: 1 where any failed."""
    console, started = Console(highlight=False), time.perf_counter()
    outcomes = []
    with open_lab() as lab:
        for outcome in run_checks(CHECKS, lab):
            outcomes.append(outcome)
            _show(console, outcome)
    counts = {status: sum(outcome.status == status for outcome in outcomes) for status in _STYLES}
    seconds = time.perf_counter() - started
    console.print(
        f"{len(outcomes)} checks in {seconds:.1f} s: {counts['ok']} ok, {counts['info']} for information, {counts['FAILED']} failed"
    )
    return 1 if counts["FAILED"] else 0


def _show(console: Console, outcome: Outcome) -> None:
    line = Text.assemble(
        (f"{outcome.status:<7}", _STYLES[outcome.status]), f"{outcome.name:<19}", (f"{outcome.seconds:6.2f} s  ", "dim"), outcome.measured
    )
    console.print(line, soft_wrap=True)
    if outcome.cure:
        console.print(Text(f"       cure: {outcome.cure}", style="yellow"), soft_wrap=True)
