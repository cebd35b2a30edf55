"""`make demo`: run the suite `demo`, then print a few worked questions, what the latents decode to, and a verdict."""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kava.checkpoint import open_checkpoint
from kava.config import config_path, load_config
from kava.experiment.reproduce import Reproduced, reproduce
from kava.experiment.suite import plans_of, read_suite, suite_path
from kava.explain.readout import read_latents
from kava.report.aggregate_file import SeedValues
from kava.results import BEST_CHECKPOINT
from kava.train.prepare import resolve_base

QUESTIONS = 4
ASKED_ALONE = 20


@dataclass(frozen=True)
class Measured:
    """One method on the test questions: the values of its evaluation, and milliseconds for a question that is asked alone."""

    values: SeedValues
    alone_ms: float


def demo(output_dir: Path, quick_test: bool, overrides: dict[str, Any]) -> int:
    """Run the demo and return the exit code."""
    started = time.perf_counter()
    console = Console(highlight=False)
    console.print(
        "[bold]kava demo[/bold]: the mini experiment with three methods and one seed (kava reproduce mini-table1: eight, and three)\n"
    )
    plans_of(read_suite(suite_path("demo")), output_dir, overrides)  # refuses what no run can have, before the base model is made
    if not quick_test:
        # Prepare the base model with all cores, before the methods share them.
        resolve_base(load_config(config_path("mini"), overrides))
    outcome = reproduce(suite_path("demo"), output_dir, overrides, quick_test=quick_test)
    # A run that was left out of the tables has been named already.
    if outcome.exit_code == 0 and outcome.groups.keys() == outcome.plans.keys():
        _worked_questions(outcome, console)
        _verdict(outcome, overrides, console)
        _paths(outcome, console)
        console.print(f"\ndone in {(time.perf_counter() - started) / 60:.1f} minutes")
    return outcome.exit_code


def _worked_questions(outcome: Reproduced, console: Console) -> None:
    runs = {run: plan for (_, run), plan in outcome.plans.items()}
    seed = runs["kava"].seeds[0]
    dataset = next(iter(runs["kava"].datasets))
    rows = {run: {row.id: row for row in outcome.groups["all", run].rows[dataset][seed]} for run in runs}
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
        values = own.values
        together_ms = 1000 * values.seconds_per_question
        shown = (f"{100 * values.accuracy:.1f}", f"{values.forward_passes:.1f}", f"{own.alone_ms:.1f}", f"{together_ms:.2f}")
        table.add_row(run, *shown)
    chance = 1 / load_config(config_path("mini"), overrides).dataset.mini.modulus
    table.add_row("(guessing)", f"{100 * chance:.1f}", "-", "-", "-")
    console.print()
    console.print(table)
    console.print(Text("\n" + verdict(measured["no_cot"], measured["full_cot"], measured["kava"], chance), style="bold"))


def _measure(outcome: Reproduced, run: str) -> Measured:
    plan, group = outcome.plans["all", run], outcome.groups["all", run]
    dataset, seed = next(iter(plan.datasets)), plan.seeds[0]
    values = next(values for values in group.aggregate.datasets[dataset].per_seed if values.seed == seed)
    questions = [row.question for row in group.rows[dataset][seed]]
    return Measured(values, alone_ms(plan.seed_dir(seed) / BEST_CHECKPOINT, questions))


def _paths(outcome: Reproduced, console: Console) -> None:
    console.print("\n[bold]Written[/bold]")
    for (_, run), plan in outcome.plans.items():
        console.print(
            f"  {plan.seed_dir(plan.seeds[0])}/   {run}: {BEST_CHECKPOINT}/, results_*.yaml and .jsonl, train.log, logs/ (TensorBoard)"
        )
    plan = outcome.plans["all", "kava"]
    console.print(
        f"\nAsk it yourself:  kava inference --checkpoint {plan.seed_dir(plan.seeds[0]) / BEST_CHECKPOINT} --mode interactive",
        soft_wrap=True,
    )


def alone_ms(checkpoint: Path, questions: list[str]) -> float:
    """Return the median milliseconds per question at batch size 1, after one warm-up question."""
    trained = open_checkpoint(checkpoint)
    reasoner, most = trained.reasoner(), trained.config.evaluation.max_new_tokens
    milliseconds = []
    for question in [questions[0], *questions[:ASKED_ALONE]]:
        started = time.perf_counter()
        reasoner.generate([question], max_new_tokens=most)
        milliseconds.append(1000 * (time.perf_counter() - started))
    return median(milliseconds[1:])


def verdict(no_cot: Measured, full_cot: Measured, kava: Measured, chance: float) -> str:
    """Return one sentence: whether KaVa reasons without writing, how close it comes to full CoT, and at what cost."""
    latent, written, none = kava.values, full_cot.values, no_cot.values
    figures = (
        f"{_percent(latent.accuracy)} with {latent.forward_passes:.0f} forward passes and {kava.alone_ms:.0f} ms a question, against "
        f"{_percent(written.accuracy)}, {written.forward_passes:.0f} passes and {full_cot.alone_ms:.0f} ms with a written chain, "
        f"{_percent(none.accuracy)} with none, and {_percent(chance)} by guessing"
    )
    if latent.accuracy_ci95[0] <= max(none.accuracy_ci95[1], chance):
        return f"KaVa has not learned to reason here: {figures}."
    near = latent.accuracy_ci95[1] >= written.accuracy_ci95[0]
    return f"KaVa reasons without writing{', as well as in words' if near else ', not quite as well as in words'}: {figures}."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
