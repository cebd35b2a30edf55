"""`kava plan`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kava.commands.options import Overridable, Positional

if TYPE_CHECKING:
    from kava.tools.plan import planner


@dataclass
class Plan(Overridable):
    """Estimate whether a configuration fits a GPU, with which batch size, and how long it takes, from shapes; no weights are loaded.

    kava plan configs/llama3b_aug.yaml --gpu-memory 24
    """

    configs: Positional[tuple[str, ...]] = ()
    """Configurations: files, or names in configs/."""
    gpu_memory: tuple[float, ...] = ()
    """Memory of the GPU in GB; several values give several plans (default: 24 40 80)."""
    card: str | None = None
    """Name of the GPU, such as H100, in place of its memory; hours use the rate that was measured on it, if there is one."""
    gpus: int = 1
    """Number of GPUs that share a training step."""
    fsdp: bool = False
    """Shard the model over the GPUs (FSDP), as --system.fsdp true does; otherwise each GPU holds a full copy."""
    tflops: float | None = None
    """Dense bf16 peak in TFLOP/s (default: from the GPU's data sheet; 24 GB: 125, as an A10; 40 and 80 GB: 312, as an A100)."""
    utilisation: float | None = None
    """Fraction of that peak that training is assumed to reach (default: 0.3). With it or --tflops, measured rates are not used."""
    rows: int | None = None
    """Number of training rows, for a data set whose size is not known."""
    mean_lengths: tuple[int, int, int] | None = None
    """Mean tokens per row: question, trace, answer (including the answer prompt and EOS)."""
    longest_lengths: tuple[int, int, int] | None = None
    """The same three lengths for the batch with the longest rows."""
    format: Literal["table", "markdown", "json"] = "table"
    """Output format."""
    json: bool = False
    """Short for --format json."""
    output: str | None = None
    """Also write the plans to this JSON file."""
    check: tuple[int, ...] = ()
    """Make no plan: measure peak memory on this CPU with these batch sizes and compare it with the estimate (SmolLM2-135M's shape)."""

    def run(self) -> None:
        from kava.errors import UserError, at_least
        from kava.results import check_output_paths, write_text
        from kava.runtime.stage import set_progress_stream
        from kava.tools.plan.measure import check
        from kava.tools.plan.planner import PlanFile
        from kava.tools.plan.report import advice, markdown

        if self.output:
            check_output_paths(Path(self.output))
        if self.check:
            at_least(1, check=min(self.check))
            check(self.check, self.output)
            return
        if not self.configs:
            raise UserError("no configuration given: kava plan configs/llama3b_aug.yaml --gpu-memory 24")
        self._check_numbers()
        kind = "json" if self.json else self.format
        if kind != "table":
            set_progress_stream("stderr")
        planned = [self._plan(name, show=kind == "table") for name in self.configs]
        plans = [plan for _, found in planned for plan in found]
        content = PlanFile(plans=plans).model_dump_json(indent=2) + "\n"
        if kind != "table":
            print(content if kind == "json" else markdown(plans), end="")
        if self.output:
            write_text(self.output, content)
        if all(plan.chosen is None for plan in plans):
            raise UserError(advice(plans[-1], planned[-1][0].config))

    def _check_numbers(self) -> None:
        from kava.errors import UserError, at_least

        at_least(1, gpus=self.gpus, rows=self.rows)
        for name in ("mean_lengths", "longest_lengths"):
            question, trace, answer = getattr(self, name) or (1, 1, 6)
            at_least(1, **{f"{name} (question)": question, f"{name} (trace)": trace})
            at_least(6, **{f"{name} (answer)": answer})
        numbers = {"gpu_memory": min(self.gpu_memory, default=None), "tflops": self.tflops, "utilisation": self.utilisation}
        for name, value in numbers.items():
            if value is not None and not value > 0:
                raise UserError(f"{name} is {value:g}; it must be more than 0")
        if self.card is not None and self.gpu_memory:
            raise UserError(f"--card {self.card} says how much memory it has: leave out --gpu_memory, or --card")

    def _plan(self, name: str, show: bool) -> "tuple[planner.Planner, list[planner.Plan]]":
        """Return the plans of a configuration for all GPUs."""
        from rich.console import Console

        from kava.config import config_path, load_config
        from kava.errors import UserError
        from kava.report.table import show as show_tables
        from kava.runtime.stage import stage
        from kava.tools.plan.cards import UTILISATION, Card, card_named, measurements
        from kava.tools.plan.planner import Planner
        from kava.tools.plan.report import advice, assumptions, plan_table
        from kava.tools.plan.shapes import data_shape, model_shape

        console = Console(highlight=False)
        path = config_path(name)
        config = load_config(path, self.overrides)
        sharded = self.fsdp or config.system.fsdp
        if sharded and self.gpus == 1:
            raise UserError(f"{'--fsdp' if self.fsdp else 'system.fsdp'} splits a model over several GPUs; say how many: --gpus 2")
        shape, source = model_shape(config)
        data = data_shape(config, self.rows, self.mean_lengths, self.longest_lengths)
        planner = Planner(path.stem, shape, config, data, measurements())
        memory, peak = self.gpu_memory or (24.0, 40.0, 80.0), None
        if self.card is not None:
            gigabytes, peak = card_named(self.card)
            memory = (gigabytes,)
        # A given rate takes the place of the one that was measured on a card of this name.
        measured_on = self.card if self.tflops is None and self.utilisation is None else None
        speed = (self.tflops or peak, self.utilisation or UTILISATION, measured_on)
        plans = []
        for gigabytes in memory:
            what = f"{path.stem} on {gigabytes:g} GB: memory and time from its shapes"
            with stage(what), Console(stderr=True).status(what):
                plans.append(planner.plan(Card(gigabytes, self.gpus, sharded, *speed)))
            if show:
                show_tables([plan_table(plans[-1])], console)
                console.print(advice(plans[-1], config), "", sep="\n", soft_wrap=True)
        if show:
            console.print(assumptions(plans[-1], data), f"Shape: {source}.", "", sep="\n", soft_wrap=True)
        return planner, plans
