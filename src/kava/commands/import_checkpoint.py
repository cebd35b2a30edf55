"""`kava import`."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass
class ImportCheckpoint:
    """Convert a checkpoint of PCCoT (peft adapter, pccot_args.json, prj weights) or CODI (one state dict) to one of ours."""

    source: Annotated[str, tyro.conf.Positional]
    """The directory as it was published."""
    output_dir: Annotated[str, tyro.conf.Positional]
    """Where our checkpoint goes: merged full weights, projection, tokenizer, configuration."""
    base: str | None = None
    """Base model, hub name or directory (PCCoT's adapter names its own)."""
    layout: Literal["auto", "pccot", "codi"] = "auto"
    """Which of the two it is (auto: found from its files)."""
    num_latents: int = 6
    """CODI keeps no settings beside its weights: latent tokens it was trained with,"""
    lora_alpha: float = 32.0
    """and its LoRA's alpha."""

    def run(self) -> None:
        from kava.checkpoint.convert import import_checkpoint

        layout = None if self.layout == "auto" else self.layout
        found = import_checkpoint(
            self.source, self.output_dir, base=self.base, layout=layout, num_latents=self.num_latents, lora_alpha=self.lora_alpha
        )
        print(f"imported from {found}'s layout: {self.output_dir}")
