"""`make demo`: run the suite `demo`, then print a few worked questions, what the latents decode to, and a verdict."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kava.checkpoint import open_checkpoint
from kava.config import config_path, load_config
from kava.experiment.reproduce import Reproduced, reproduce
from kava.experiment.suite import suite_path
from kava.experiment.verdict import Measured, alone_ms, verdict
from kava.explain.readout import read_latents
from kava.results import BEST_CHECKPOINT, read_result, read_rows, result_path, rows_path
from kava.train.prepare import resolve_base

QUESTIONS = 4


def demo(output_dir: Path, quick_test: bool, overrides: dict[str, Any]) -> int:
    """Run the demo and return the exit code."""
    started = time.perf_counter()
    console = Console(highlight=False)
    console.print(
        "[bold]kava demo[/bold]: the mini experiment with three methods and one seed (kava reproduce mini-table1: eight, and three)\n"
    )
    if not quick_test:
        # Prepare the base model with all cores, before the methods share them.
        resolve_base(load_config(config_path("mini"), overrides))
    outcome = reproduce(suite_path("demo"), output_dir, overrides, quick_test=quick_test)
    if outcome.exit_code == 0:
        _worked_questions(outcome, console)
        _verdict(outcome, overrides, console)
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


def _verdict(outcome: Reproduced, overrides: dict[str, Any], console: Console) -> None:
    """Print the time per question alone and in batches, the chance level, and the verdict."""
    table = Table(title="A question on this machine", title_justify="left")
    for heading in ("method", "test, %", "forward passes", "ms, batch of one", "ms, large batch"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    measured = {run: _measure(outcome, run) for _, run in outcome.plans}
    for run, own in measured.items():
        shown = (f"{100 * own.accuracy:.1f}", f"{own.forward_passes:.1f}", f"{own.alone_ms:.1f}", f"{own.together_ms:.2f}")
        table.add_row(run, *shown)
    chance = 1 / load_config(config_path("mini"), overrides).dataset.mini.modulus
    table.add_row("(guessing)", f"{100 * chance:.1f}", "-", "-", "-")
    console.print()
    console.print(table)
    console.print(Text("\n" + verdict(measured["no_cot"], measured["full_cot"], measured["kava"], chance), style="bold"))


def _measure(outcome: Reproduced, run: str) -> Measured:
    plan = outcome.plans["all", run]
    dataset, seed_dir = next(iter(plan.datasets)), plan.seed_dir(plan.seeds[0])
    metrics = read_result(result_path(seed_dir, dataset)).metrics
    questions = [row.question for row in read_rows(rows_path(result_path(seed_dir, dataset)))]
    alone, together = alone_ms(seed_dir / BEST_CHECKPOINT, questions), 1000 * metrics.seconds_per_question
    low, high = metrics.accuracy_ci95
    return Measured(metrics.accuracy, (low, high), metrics.forward_passes, alone, together)


def _paths(outcome: Reproduced, console: Console) -> None:
    console.print("\n[bold]Written[/bold]")
    for (_, run), plan in outcome.plans.items():
        console.print(
            f"  {plan.seed_dir(plan.seeds[0])}/   {run}: {BEST_CHECKPOINT}/, results_*.yaml and .jsonl, train.log, logs/ (TensorBoard)"
        )
    best = outcome.plans["all", "kava"].seed_dir(outcome.plans["all", "kava"].seeds[0]) / BEST_CHECKPOINT
    console.print(f"\nAsk it yourself:  kava inference --checkpoint {Path(best)} --mode interactive", soft_wrap=True)
