"""`kava replay`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

if TYPE_CHECKING:
    from kava.train.replay import Replayed


@dataclass
class Replay:
    """Repeat a training step that was saved because its numbers were not finite (bad_batch-<step> in a run's directory).

    Any configuration field can be overridden, to try a fix: --loss.kv_loss_type l1. Exit code 0: all numbers are finite; 1: not.
    """

    directory: Annotated[str, tyro.conf.Positional]
    """Directory of the saved step, as printed during training: RUN/bad_batch-<step>."""
    all: bool = False
    """Show every example, not only those with numbers that are not finite."""

    overrides: ClassVar[dict[str, Any]] = {}

    def run(self) -> int:
        from kava.runtime.device import choose_device
        from kava.train.replay import replay

        replayed = replay(self.directory, self.overrides, choose_device(self.overrides.get("system.device"), "system.device"))
        _show(replayed, self.all)
        return int(not replayed.sound)


def _show(replayed: "Replayed", everything: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    report = replayed.report
    console.print(Text(f"step {report.step}: {report.problem} (gradient norm {report.gradient_norm})"))
    shown = [example for example in replayed.examples if everything or not example.sound]
    if shown:
        table = Table("example", *shown[0].losses, "gradient", "question", title="this time")
        for example in shown:
            norm = "" if example.gradient_norm is None else f"{example.gradient_norm:.4g}"
            numbers = [*(f"{value:.4g}" for value in example.losses.values()), norm]
            table.add_row(*map(Text, (example.id, *numbers, example.question)))
        console.print(table)
    bad = replayed.bad_parameters
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        console.print(Text(f"gradients that are not finite: {', '.join(bad[:3])}{more}"))
    finite = sum(example.sound for example in replayed.examples)
    console.print(Text(f"{finite} of {len(replayed.examples)} examples are finite; gradient norm {replayed.gradient_norm:.4g}"))
