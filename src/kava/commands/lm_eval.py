"""`kava lm-eval`."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass
class LmEval:
    """Run lm-evaluation-harness with our models known to it. Options are those of lm_eval; `--model kava` is understood.

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

        from kava.evaluate.lm_eval import TASKS

        given = list(self.arguments)
        for option, value in (("--model", "kava"), ("--include_path", str(TASKS))):
            if not any(word == option or word.startswith(f"{option}=") for word in given):
                given += [option, value]
        sys.argv = ["lm_eval", *given]
        cli_evaluate()
