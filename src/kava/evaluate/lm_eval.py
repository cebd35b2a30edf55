"""Adapter for lm-evaluation-harness: the harness asks the questions of a task, and a kava model answers them with latents.

kava lm-eval --model_args pretrained=outputs/run/best_checkpoint --tasks kava_gsm8k

`kava_gsm8k`, `kava_gsm8k_hard` and `kava_svamp` (tasks/) ask the bare question and grade answers as `kava evaluate` does. The
harness's own `gsm8k` works too: its "Question: ... Answer:" template is removed, and the answer is returned after "####".
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval.tasks
import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from kava.checkpoint import open_checkpoint
from kava.data.answer_types import read_answer
from kava.errors import UserError, at_least, reason_of

TASKS = Path(__file__).parent / "tasks"
_FRAME = ("Question:", "Answer:")


@register_model("kava")
class KavaLM(LM):
    """A trained checkpoint as a model of the harness.

    Args:
        pretrained: a checkpoint, or the directory of a run that has a best one.
        batch_size: questions per batch; default: the checkpoint's evaluation.batch_size.
        device: device of the model, used only if there is a GPU (the harness always passes one).
        use_latent: False makes a latent method write its chain of thought.
        trust_remote_code: run code from the base model's repository (the harness's --trust_remote_code).
    """

    def __init__(
        self,
        pretrained: str = "",
        batch_size: int | str | None = None,
        device: str | None = None,
        use_latent: bool = True,
        trust_remote_code: bool = False,
        max_batch_size: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        if others:
            raise UserError(
                f"a kava model has no argument '{next(iter(others))}': leave it out of --model_args; it takes pretrained, use_latent"
            )
        if not pretrained:
            raise UserError("the checkpoint is missing: give --model_args pretrained=RUN")
        trusted = {"model.trust_remote_code": True} if trust_remote_code else {}
        trained = open_checkpoint(str(pretrained), trusted, device if torch.cuda.is_available() else None)
        evaluation = trained.config.evaluation
        self.reasoner = trained.reasoner()
        self.batch = _batch_size(batch_size) or evaluation.batch_size
        self.max_new_tokens = evaluation.max_new_tokens
        self.use_latent = use_latent

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer the harness's requests; each is (context, options), in the order asked."""
        options = [self._options(request.args[1]) for request in requests]
        questions = [_question(request) for request in requests]
        texts = [""] * len(requests)
        # The requests of several tasks come together.
        for limit in {each["max_gen_toks"] for each in options}:
            chosen = [index for index, each in enumerate(options) if each["max_gen_toks"] == limit]
            answers = self.reasoner.generate(
                [questions[index] for index in chosen], batch_size=self.batch, max_new_tokens=limit, use_latent=self.use_latent
            )
            for index, answer in zip(chosen, answers, strict=True):
                texts[index] = self._written(requests[index].args[0], answer.text, options[index]["until"])
        return texts

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the options of a request in the harness's one form, with a limit of tokens that the checkpoint's own limits."""
        options = normalize_gen_kwargs({name: value for name, value in given.items() if value is not None}, self.max_new_tokens)
        if options["do_sample"]:
            raise UserError(
                "the harness asks for sampling (do_sample or a temperature); kava answers greedily, as its results do: leave it out"
            )
        return {**options, "max_gen_toks": min(self.max_new_tokens, options["max_gen_toks"])}

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Raise an error: a model that reasons first has no likelihood for a direct continuation of the question."""
        raise UserError("this task compares likelihoods, which kava models do not provide; choose a generative task")

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Raise an error, as `loglikelihood` does."""
        return [value for value, _ in self.loglikelihood(requests)]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Raise an error: the model was trained on bare questions."""
        raise UserError("questions are asked as in training, in no chat template: leave apply_chat_template out")

    @property
    def tokenizer_name(self) -> str:
        """Name that the harness uses in its cache keys."""
        return "kava"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return an empty template."""
        return ""

    def _written(self, context: str, text: str, until: list[str]) -> str:
        """Return the answer up to the first stop string; for the harness's own template, with the number in GSM8K's notation."""
        for stop in until:
            text = text.partition(stop)[0] if stop else text
        builder = self.reasoner.builder
        read = partial(read_answer, answer_prompt=builder.answer_prompt, answer_type=builder.answer_type)
        answer = read(text, after_prompt=not self.reasoner.writes_trace(self.use_latent))
        if answer is None:
            return text
        # Graders look for a marker or for the last number in the text, and the model may have continued after its answer.
        marker = "####" if context.rstrip().endswith(_FRAME[1]) else builder.answer_prompt
        return text if read(text) == answer and marker == builder.answer_prompt else f"{text}\n{marker} {answer}"


def _batch_size(given: int | str | None) -> int | None:
    if given is None or str(given).startswith("auto"):
        return None
    try:
        size = int(given)
    except ValueError:
        raise UserError(f"batch_size is '{given}'; give a number of questions, or auto") from None
    at_least(1, batch_size=size)
    return size


def register_tasks() -> None:
    """Make the harness find our tasks next to its own and those of a user's --include_path, which accepts only one folder."""
    own = lm_eval.tasks.TaskManager

    class TaskManager(own):  # type: ignore[misc, valid-type]
        def __init__(self, include_path: Any = None, **options: Any) -> None:
            given = list(include_path) if isinstance(include_path, list | tuple) else [include_path] if include_path else []
            super().__init__(include_path=[str(TASKS), *map(str, given)], **options)

    lm_eval.tasks.TaskManager = TaskManager


@contextmanager
def report_absent_data() -> Iterator[None]:
    """Turn the failure to load a task's data into one line.

    Raises:
        UserError: the hub cannot be reached, or has no such data set.
    """
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    # FileNotFoundError: the hub client also raises it for a file that is neither cached nor reachable.
    except (ConnectionError, DatasetNotFoundError, FileNotFoundError, HfHubHTTPError) as error:
        reason = reason_of(error)
        raise UserError(
            f"the task's data cannot be loaded ({reason}); download it beforehand, or ask local files: "
            '--tasks kava_gsm8k --metadata \'{"data_dir": "DIRECTORY"}\''
        ) from None


def question_of(context: str) -> str:
    """Return the last question of a context, without the harness's "Question: ... Answer:" template."""
    question, answer = _FRAME
    if not context.rstrip().endswith(answer) or question not in context:
        return context.strip()
    return context.rpartition(question)[2].strip().removesuffix(answer).strip()


def _question(request: Any) -> str:
    """`question_of` a request.

    Raises:
        UserError: examples come before it, in a template of another mark, such as "Q:".
    """
    asked = question_of(request.args[0])
    *before, last = asked.split("\n\n")
    mark = re.match(r"[^\s:：]+[:：]", last)
    if mark and any(block.startswith(mark[0]) for block in before):
        raise UserError(
            f"task {request.task_name} puts examples before its questions, each behind '{mark[0]}', a template that kava does not know; "
            "questions are asked bare, as in training: give --num_fewshot 0, or take another task"
        )
    return asked
