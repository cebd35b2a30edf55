"""`kava demo`, which `make demo` calls."""

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass
class Demo:
    """The mini experiment with three methods: pretrain a small teacher, train no-CoT, full CoT and KaVa, measure, look inside."""

    output_dir: str | None = None
    """Output directory; steps that are finished there are skipped (default: outputs/demo)."""
    quick_test: bool = False
    """A few steps only."""

    overrides: ClassVar[dict[str, Any]] = {}

    def run(self) -> int:
        from pathlib import Path

        from kava.experiment.demo import demo

        output_dir = Path(self.output_dir or f"outputs/demo{'_quick_test' if self.quick_test else ''}")
        return demo(output_dir, self.quick_test, self.overrides)
