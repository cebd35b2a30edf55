"""`kava evaluate`, `python evaluate.py`."""

from dataclasses import dataclass, replace

from kava.commands.options import Overridable


@dataclass
class Evaluate(Overridable):
    """Measure accuracy, forward passes, tokens and seconds per question of a checkpoint on one or more data sets."""

    checkpoint_dir: str | None = None
    """A checkpoint, or the directory of a run that has a best_checkpoint."""
    checkpoint: str | None = None
    """Alias of --checkpoint_dir, which the guide also uses."""
    eval_dataset: tuple[str, ...] = ()
    """gsm8k, gsm8k-hard, svamp, svamp-1000, multiarith, addsub, singleeq, asdiv, gsm-plus, gsm-symbolic, mgsm-zh (and other languages),
    math-500, prosqa, prontoqa, commonsenseqa, strategyqa; a name in evaluation.datasets, a file, a directory or a hub name
    (openai/gsm8k, openai/gsm8k:socratic, openai/gsm8k@COMMIT). Several are measured one after the other; the model is loaded once."""
    dataset: tuple[str, ...] = ()
    """Alias of --eval_dataset, which the guide also uses."""
    output: tuple[str, ...] = ()
    """Result file to write, one per data set (default: results_<dataset>.yaml in the directory of the run)."""
    data_dir: str | None = None
    """A local directory that contains the data set."""
    max_samples: int | None = None
    """Evaluate only the first N questions."""
    batch_size: int | None = None
    """Questions per batch."""
    quick_test: bool = False
    """Evaluate at most twenty questions."""
    no_latent: bool = False
    """Write the chain of thought instead of reasoning in latents."""

    def run(self) -> None:
        from kava.errors import UserError

        checkpoint, datasets = self.checkpoint_dir or self.checkpoint, self.eval_dataset or self.dataset
        if checkpoint is None or not datasets:
            raise UserError("say what to evaluate: --checkpoint_dir RUN/best_checkpoint --eval_dataset gsm8k")
        from kava.evaluate.evaluate import Request, default_output, evaluate_all, print_result
        from kava.results import rows_path
        from kava.runtime.processes import is_main, leave

        given = {"max_samples": self.max_samples, "quick_test": self.quick_test, "no_latent": self.no_latent}
        changed = [f"--{name}" for name, value in given.items() if value]
        harmless = ("system.", "model.", "evaluation.batch_size", "evaluation.datasets.")
        changed += [f"--{key}" for key in self.overrides if not key.startswith(harmless)]
        outputs = self.output or [str(default_output(checkpoint, dataset, changed)) for dataset in datasets]
        if not len(outputs) == len({rows_path(output).absolute() for output in outputs}) == len(datasets):
            raise UserError("each data set needs a result file of its own: give each once, with one --output per data set or none")
        request = Request(
            checkpoint,
            datasets[0],
            data_dir=self.data_dir,
            max_samples=self.max_samples,
            quick_test=self.quick_test,
            batch_size=self.batch_size,
            use_latent=not self.no_latent,
            overrides=self.overrides,
        )
        requests = [(replace(request, dataset=dataset), output) for dataset, output in zip(datasets, outputs, strict=True)]
        for (_, output), result in zip(requests, evaluate_all(requests), strict=True):
            if is_main():
                print_result(result)
                print(f"written: {output} and {rows_path(output)}", flush=True)
        leave()
