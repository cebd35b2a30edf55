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

        try:
            from lm_eval.__main__ import cli_evaluate
        except ImportError:
            raise UserError("lm-evaluation-harness is not installed: pip install 'kava-latent[lm_eval]' (or pip install lm-eval)") from None
        import lm_eval.models  # noqa: F401  (the harness looks its own up only while none is known)

        from kava.evaluate.lm_eval import register_tasks, report_absent_data

        given = list(self.arguments)
        if any(word.startswith("--apply_chat_template") for word in given):
            raise UserError("questions are asked as in training, in no chat template: leave --apply_chat_template out")
        # The harness's default is one question at a time; auto: the checkpoint's evaluation.batch_size.
        for option, value in (("--model", "kava"), ("--batch_size", "auto")):
            if not any(word == option or word.startswith(f"{option}=") for word in given):
                given += [option, value]
        register_tasks()
        sys.argv = ["lm_eval", *given]
        with report_absent_data():
            cli_evaluate()
