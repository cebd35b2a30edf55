"""`kava explain`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kava.commands.options import Checkpoint, Overridable, Positional


@dataclass
class Explain(Overridable):
    """Analyse what the latents of a checkpoint encode; the results are written as JSON and as figures."""

    checkpoint: Positional[Checkpoint]
    question: tuple[str, ...] = ()
    """Your own questions."""
    dataset: str | None = None
    """A name in evaluation.datasets, a file, a directory or a hub name (default without --question: the first of evaluation.datasets)."""
    max_samples: int = 200
    """Number of questions from the data set, for convergence and interventions."""
    details: int = 4
    """Number of questions to show in detail."""
    top_k: int = 5
    """Number of top tokens to decode from each latent."""
    output_dir: str | None = None
    """Where explanation.json and the figures go (default: explain/ in the directory of the run)."""
    figures: Literal["png", "svg", "pdf", "none"] = "png"
    """Format of the figures. Letters that no installed font has are boxes in them; the page of kava report has all letters."""

    def run(self) -> None:
        from kava.checkpoint import checkpoint_directory, open_checkpoint, results_directory
        from kava.errors import at_least
        from kava.evaluate.questions import load_questions
        from kava.explain.explain import Options, explain
        from kava.explain.questions import own_example
        from kava.explain.record import EXPLANATION, write_explanation
        from kava.results import check_output_paths

        at_least(1, max_samples=self.max_samples, top_k=self.top_k)
        at_least(0, details=self.details)
        directory = checkpoint_directory(self.checkpoint)
        target = Path(self.output_dir) if self.output_dir else results_directory(self.checkpoint) / "explain"
        check_output_paths(target / EXPLANATION)
        trained = open_checkpoint(directory, self.overrides)
        config = trained.config
        examples = [own_example(question, number) for number, question in enumerate(self.question, 1)]
        source = None
        if self.dataset or not examples:
            name = self.dataset or next(iter(config.evaluation.datasets))
            loaded = load_questions(config, name, None, self.max_samples, config.dataset.cot_type)
            examples, source = [*examples, *loaded.examples], loaded.source
        reasoner = trained.reasoner()
        details = max(self.details, len(self.question))
        options = Options(
            str(directory), source, details, self.top_k, config.evaluation.max_new_tokens, lambda text: print(f"kava: {text}")
        )
        explanation = explain(reasoner, config, examples, options)
        explanation.provenance["training"] = trained.metadata
        write_explanation(target / EXPLANATION, explanation)
        print(f"written: {target / EXPLANATION}")
        for note in explanation.notes:
            print(f"kava: {note}")
        for found in explanation.intermediate:
            print(f"kava: {found.in_words()}")
        if self.figures != "none":
            from kava.explain.figures import any_text, figures

            with any_text():
                for stem, figure in figures(explanation):
                    figure.savefig(target / f"{stem}.{self.figures}", dpi=150)
                    print(f"written: {target / stem}.{self.figures}")
