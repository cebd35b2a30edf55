"""Adapter for lm-evaluation-harness: the harness asks the questions of a task, and a kava model answers them with latents.

kava lm-eval --model_args pretrained=outputs/run/best_checkpoint --tasks kava_gsm8k

`kava_gsm8k`, `kava_gsm8k_hard` and `kava_svamp` (tasks/) ask the bare question and grade answers as `kava evaluate` does. The
harness's own `gsm8k` works too: its "Question: ... Answer:" template is removed, and the answer is returned after "####".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import lm_eval.tasks
import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from kava.checkpoint import open_checkpoint
from kava.data.answers import extract_answer
from kava.errors import UserError, reason_of

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
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str | None = None,
        device: str | None = None,
        use_latent: bool = True,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        trained = open_checkpoint(str(pretrained), device=device if torch.cuda.is_available() else None)
        evaluation = trained.config.evaluation
        self.reasoner = trained.reasoner()
        self.batch = int(str(batch_size)) if str(batch_size).isdigit() else evaluation.batch_size
        self.max_new_tokens = evaluation.max_new_tokens
        self.use_latent = use_latent

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer the harness's requests; each is (context, options), in the order asked."""
        limits = [self._limit(request.args[1]) for request in requests]
        questions = [question_of(request.args[0]) for request in requests]
        # The requests of several tasks come together; those of one limit and of similar length share a batch.
        order = sorted(range(len(questions)), key=lambda index: (limits[index], len(questions[index])))
        texts: dict[int, str] = {}
        with tqdm(total=len(questions), desc="kava answers", disable=disable_tqdm) as bar:
            for limit, alike in groupby(order, key=lambda index: limits[index]):
                indices = list(alike)
                for start in range(0, len(indices), self.batch):
                    batch = indices[start : start + self.batch]
                    answers = self.reasoner.generate(
                        [questions[index] for index in batch], batch_size=self.batch, max_new_tokens=limit, use_latent=self.use_latent
                    )
                    texts.update((index, answer.text) for index, answer in zip(batch, answers, strict=True))
                    bar.update(len(batch))
        return [self._written(request, texts[index]) for index, request in enumerate(requests)]

    def _limit(self, options: dict[str, Any]) -> int:
        """Return the number of tokens that a request may have."""
        if float(options.get("temperature") or 0) > 0 and options.get("do_sample"):
            raise UserError("the harness asks for sampling (do_sample); kava answers greedily, as its results do: leave it out")
        return min(self.max_new_tokens, int(options.get("max_gen_toks") or self.max_new_tokens))

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

    def _written(self, request: Any, text: str) -> str:
        """Return the answer up to the first stop string; for the harness's own template, with the number in GSM8K's notation."""
        for stop in request.args[1].get("until") or []:
            text = text.partition(stop)[0] if stop else text
        prompt = self.reasoner.builder.answer_prompt
        number = extract_answer(text, prompt, after_prompt=not self.reasoner.writes_trace(self.use_latent))
        if number is None:
            return text
        # Graders look for a marker or for the last number in the text, and the model may have continued after its answer.
        marker = "####" if request.args[0].rstrip().endswith(_FRAME[1]) else prompt
        return text if extract_answer(text, prompt) == number and marker == prompt else f"{text}\n{marker} {number}"


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
