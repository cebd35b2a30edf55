"""`kava inference`, `python inference.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kava.commands.options import Checkpoint, Overridable


@dataclass
class Inference(Overridable):
    """Ask a trained model, in a terminal session or in batches. Any configuration field can be overridden: --model.name DIRECTORY
    sets where the base model is now.
    """

    checkpoint: Checkpoint
    config: str | None = None
    """Configuration that the checkpoint was trained with; it is checked against the checkpoint's own."""
    mode: Literal["interactive", "batch"] = "interactive"
    """A terminal session, or all given questions at once."""
    questions: tuple[str, ...] = ()
    """Questions for --mode batch."""
    input_file: str | None = None
    """A file of questions for --mode batch: one per line, or JSON lines."""
    output_file: str | None = None
    """JSON lines file that --mode batch writes (default: standard output)."""
    use_latent: bool = True
    """Reason in latents, unless evaluation.use_latent is false."""
    no_latent: bool = False
    """Write the chain of thought instead."""
    temperature: float | None = None
    """Sampling temperature; 0 is greedy decoding (default: evaluation.temperature)."""
    max_new_tokens: int | None = None
    """Maximum number of tokens per answer (default: evaluation.max_new_tokens)."""

    def run(self) -> None:
        from kava.checkpoint import open_checkpoint
        from kava.config import config_path, load_config
        from kava.errors import UserError, at_least
        from kava.results import check_output_paths
        from kava.runtime.stage import set_progress_stream
        from kava.tools.session import Session, answer_file, check_config, read_questions

        at_least(1, max_new_tokens=self.max_new_tokens)
        at_least(0, temperature=self.temperature)
        if self.mode == "interactive" and (self.questions or self.input_file or self.output_file):
            raise UserError("--questions, --input_file and --output_file are for --mode batch; add it, or leave them out")
        if self.output_file is not None:
            check_output_paths(Path(self.output_file))
        trained = open_checkpoint(self.checkpoint, self.overrides)
        if self.config:
            changed = {key: value for key, value in self.overrides.items() if key != "model.name"}
            check_config(trained, load_config(config_path(self.config), changed))
        reasoner = trained.reasoner()
        evaluation = trained.config.evaluation
        max_new_tokens = self.max_new_tokens or evaluation.max_new_tokens
        temperature = evaluation.temperature if self.temperature is None else self.temperature
        use_latent = self.use_latent and not self.no_latent and evaluation.use_latent
        if self.output_file is None:
            set_progress_stream("stderr")
        if self.mode == "interactive":
            Session(reasoner, max_new_tokens, temperature, use_latent, trained.config).run()
            return
        questions = [*self.questions, *(read_questions(self.input_file) if self.input_file else [])]
        answer_file(
            reasoner,
            questions,
            self.output_file,
            batch_size=evaluation.batch_size,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            use_latent=use_latent,
            config=trained.config,
        )
