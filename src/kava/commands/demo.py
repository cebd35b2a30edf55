"""`kava demo`, which `make demo` calls."""

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass
class Demo:
    """The mini experiment with three methods: pretrain a small teacher, train no-CoT, full CoT and KaVa, measure, look inside."""

    output_dir: str = "outputs/demo"
    """Output directory; steps that are finished there are skipped."""
    quick_test: bool = False
    """A few steps only."""

    overrides: ClassVar[dict[str, Any]] = {}

    def run(self) -> int:
        from pathlib import Path

        from kava.experiment.demo import demo

        return demo(Path(self.output_dir), self.quick_test, self.overrides)
