"""`kava demo`, which `make demo` calls."""

from dataclasses import dataclass

from kava.commands.options import Overridable, output_directory


@dataclass
class Demo(Overridable):
    """Run the mini experiment: pretrain a small teacher, train no-CoT, full CoT and KaVa, evaluate them, and decode the latents."""

    output_dir: str | None = None
    """Output directory; steps that are finished there are skipped (default: outputs/demo)."""
    quick_test: bool = False
    """Run only a few steps."""

    def run(self) -> int:
        from kava.experiment.demo import demo

        return demo(output_directory(self.output_dir, "demo", self.quick_test), self.quick_test, self.overrides)
