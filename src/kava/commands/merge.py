"""`kava merge`."""

from dataclasses import dataclass

from kava.commands.options import Positional


@dataclass
class Merge:
    """Merge a checkpoint's LoRA adapter into its base model. The result is a plain transformers model and also a full-weight checkpoint."""

    checkpoint: Positional[str]
    """A checkpoint, the directory of a run, or a hub name."""
    output_dir: Positional[str]
    """Where to write the merged model."""

    def run(self) -> None:
        from kava.checkpoint.publish import merge

        merge(self.checkpoint, self.output_dir)
        print(f"merged: {self.output_dir} (AutoModelForCausalLM.from_pretrained, or any kava command)")
