"""`kava lm-eval`."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass
class LmEval:
    """Run lm-evaluation-harness with kava checkpoints as models. Options are those of lm_eval; `--model kava` is the default.

    kava lm-eval --model_args pretrained=outputs/run/best_checkpoint --tasks kava_gsm8k
    """

    arguments: ClassVar[list[str]] = []

    def run(self) -> None:
        import sys

        from kava.errors import UserError
        from kava.runtime.stage import set_progress_stream

        try:
            import lm_eval.models  # noqa: F401  (the harness looks its own up only while none is known)
            from lm_eval.__main__ import cli_evaluate

            from kava.evaluate.lm_eval import register_tasks, report_absent_data
        except ImportError:
            raise UserError("there is no lm-evaluation-harness from 0.4.10 on: pip install 'kava-latent[lm_eval]'") from None

        given = list(self.arguments)
        if any(word.startswith("--apply_chat_template") for word in given):
            raise UserError("questions are asked as in training, in no chat template: leave --apply_chat_template out")
        # The harness's default is one question at a time; auto: the checkpoint's evaluation.batch_size.
        for option, value in (("--model", "kava"), ("--batch_size", "auto")):
            if not any(word == option or word.startswith(f"{option}=") for word in given):
                given += [option, value]
        register_tasks()
        set_progress_stream("stderr")
        sys.argv = ["lm_eval", *given]
        with report_absent_data():
            cli_evaluate()
