"""`make demo`: the suite `demo`, then a few worked questions and what the latents decode to."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from kava.checkpoint import open_checkpoint
from kava.config import config_path, load_config
from kava.experiment.reproduce import Options, Reproduced, reproduce
from kava.experiment.suite import suite_path
from kava.explain.readout import read_latents
from kava.results import BEST_CHECKPOINT, read_rows, result_path, rows_path
from kava.train.prepare import resolve_base

QUESTIONS = 4


def demo(output_dir: str, flags: list[str], overrides: dict[str, Any]) -> int:
    """Run the demo; returns the exit code."""
    started = time.perf_counter()
    console = Console(highlight=False)
    console.print(
        "[bold]kava demo[/bold]: the mini experiment in its short form (one seed, fewer steps; configs/mini.yaml is the full form)\n"
    )
    if not flags:
        # With all cores, before the methods share them.
        resolve_base(load_config(config_path("mini"), overrides))
    outcome = reproduce(suite_path("demo"), Options(output_dir, flags=flags), overrides)
    if outcome.exit_code == 0:
        _worked_questions(outcome, console)
        _paths(outcome, console)
        console.print(f"\ndone in {(time.perf_counter() - started) / 60:.1f} minutes")
    return outcome.exit_code


def _worked_questions(outcome: Reproduced, console: Console) -> None:
    runs = {run: plan for (_, run), plan in outcome.plans.items()}
    seed = runs["kava"].seeds[0]
    dataset = next(iter(runs["kava"].datasets))
    rows = {run: {r.id: r for r in read_rows(rows_path(result_path(plan.seed_dir(seed), dataset)))} for run, plan in runs.items()}
    trained = open_checkpoint(runs["kava"].seed_dir(seed) / BEST_CHECKPOINT)
    reasoner = trained.reasoner()
    console.print("\n[bold]Worked questions[/bold]")
    for identifier in list(rows["kava"])[:QUESTIONS]:
        gold = rows["kava"][identifier]
        console.print(Text(f"\n{gold.question}", style="bold"))
        console.print(Text(f"  gold answer   {gold.gold}"))
        for run, own in rows.items():
            row = own[identifier]
            written = f"   wrote: {row.text}" if run == "full_cot" else ""
            mark = "right" if row.correct else "wrong"
            console.print(Text(f"  {run:<12}  {row.prediction or '-'}  {mark}, {row.forward_passes} forward passes{written}"))
        console.print(Text("  kava's latents decode to:  " + " ".join(read_latents(reasoner, gold.question, 1).final()), style="dim"))


def _paths(outcome: Reproduced, console: Console) -> None:
    console.print("\n[bold]Written[/bold]")
    for (_, run), plan in outcome.plans.items():
        console.print(
            f"  {plan.seed_dir(plan.seeds[0])}/   {run}: {BEST_CHECKPOINT}/, results_*.yaml and .jsonl, train.log, logs/ (TensorBoard)"
        )
    best = outcome.plans["all", "kava"].seed_dir(outcome.plans["all", "kava"].seeds[0]) / BEST_CHECKPOINT
    console.print(f"\nAsk it yourself:  kava inference --checkpoint {Path(best)} --mode interactive", soft_wrap=True)
