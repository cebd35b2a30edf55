"""`kava demo`, which `make demo` calls."""

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass
class Demo:
    """Run the mini experiment: pretrain a small teacher, train no-CoT, full CoT and KaVa, evaluate them, and decode the latents."""

    output_dir: str | None = None
    """Output directory; steps that are finished there are skipped (default: outputs/demo)."""
    quick_test: bool = False
    """Run only a few steps."""

    overrides: ClassVar[dict[str, Any]] = {}

    def run(self) -> int:
        from pathlib import Path

        from kava.experiment.demo import demo

        output_dir = Path(self.output_dir or f"outputs/demo{'_quick_test' if self.quick_test else ''}")
        return demo(output_dir, self.quick_test, self.overrides)
