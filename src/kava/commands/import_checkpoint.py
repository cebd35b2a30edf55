"""`kava import`."""

from dataclasses import dataclass
from typing import Literal

from kava.commands.options import Positional


@dataclass
class ImportCheckpoint:
    """Convert a checkpoint of PCCoT (peft adapter, pccot_args.json, prj weights) or CODI (one state dict) to a kava checkpoint."""

    source: Positional[str]
    """Directory of the checkpoint, as published."""
    output_dir: Positional[str]
    """Where to write the kava checkpoint: merged full weights, projection, tokenizer, configuration."""
    base: str | None = None
    """Base model, hub name or directory (required for CODI; PCCoT's adapter names its own)."""
    layout: Literal["auto", "pccot", "codi"] = "auto"
    """Format of the checkpoint (auto: detected from its files)."""
    num_latents: int = 6
    """CODI only: latent tokens it was trained with; a CODI checkpoint does not record its settings."""
    lora_alpha: float = 32.0
    """CODI only: alpha of its LoRA adapter."""

    def run(self) -> None:
        from kava.checkpoint.convert import import_checkpoint

        layout = None if self.layout == "auto" else self.layout
        found = import_checkpoint(
            self.source, self.output_dir, base=self.base, layout=layout, num_latents=self.num_latents, lora_alpha=self.lora_alpha
        )
        print(f"imported from {found}'s layout: {self.output_dir}")
