"""A trained model with its tokenizer and configuration: ask it, inspect its latents, save it, push it to the hub.

model = kava.load("outputs/run/best_checkpoint")
model.answer("...")
"""

from collections.abc import Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from kava.api.generation import generate
from kava.api.stable_text import StableText
from kava.checkpoint import Trained, checkpoint_directory, open_checkpoint
from kava.checkpoint.publish import push, results_beside, save_with_card
from kava.config import Config
from kava.errors import UserError, at_least, only_options
from kava.explain.thoughts import Thoughts, think
from kava.generate import Generation, Reasoner
from kava.results import Result
from kava.runtime.device import choose_device


class Model:
    """A trained model. `from_pretrained`, `save_pretrained` and `push_to_hub` follow Hugging Face's conventions.

    Attributes:
        trained: the model itself (`trained.model`), tokenizer, configuration and metadata.
        results: evaluations that are listed in its model card.
    """

    def __init__(self, trained: Trained, results: Sequence[Result] = ()) -> None:
        self.trained = trained
        self.results = list(results)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        revision: str | None = None,
        overrides: dict[str, Any] | None = None,
    ) -> "Model":
        """Load a trained model; see `kava.load`."""
        directory = checkpoint_directory(pretrained_model_name_or_path, revision)
        trained = open_checkpoint(directory, overrides, None if device is None else str(device))
        return cls(trained, results_beside(directory, trained.config))

    @property
    def config(self) -> Config:
        """Configuration of the run."""
        return self.trained.config

    @property
    def tokenizer(self) -> Any:
        """Tokenizer, with `<bot>`, `<eot>` and `<latent>`."""
        return self.trained.tokenizer

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.trained.model.backbone.special_ids.device

    def to(self, device: str | torch.device) -> "Model":
        """Move the model to a device, in place, and return it.

        Raises:
            UserError: there is no such device.
        """
        self.trained.model.to(choose_device(str(device)))
        # What was recorded belongs to the device that the model was on.
        self.trained.model.backbone.use_graphs(self.config.system.cuda_graphs and self.device.type == "cuda")
        return self

    @overload
    def answer(self, questions: str, **options: Any) -> Generation: ...
    @overload
    def answer(self, questions: Sequence[str], **options: Any) -> list[Generation]: ...
    def answer(self, questions: str | Sequence[str], **options: Any) -> Generation | list[Generation]:
        """Answer a question, or several in batches.

        Args:
            questions: one question, or a list of them.
            options: options of `kava.generate.Reasoner.generate`: batch_size, max_new_tokens, temperature, seed, use_latent.

        Returns:
            One `Generation` for one question, a list for a list: `.answer` is the extracted answer, `.text` the generated text.

        Raises:
            UserError: a question is empty, or too long for the model; there is no such option, or it is out of its range.
        """
        only_options("answer", options, set(signature(Reasoner.generate).parameters) - {"self", "questions"})
        asked = _questions(questions)
        evaluation = self.config.evaluation
        defaults = {"max_new_tokens": evaluation.max_new_tokens, "batch_size": evaluation.batch_size}
        answers = self.trained.reasoner().generate(asked, **defaults | options)
        return answers[0] if isinstance(questions, str) else answers

    def stream(self, question: str, *, max_new_tokens: int | None = None, use_latent: bool = True) -> Iterator[str]:
        """Answer one question greedily, piece by piece; the pieces together are the answer's text.

        Raises:
            UserError: the question is empty, or too long for the model, or not one; max_new_tokens is below 1.
        """
        asked = _questions(question)
        if len(asked) != 1:
            raise UserError(f"stream answers one question, and {len(asked)} were given; several are for answer")
        at_least(1, max_new_tokens=max_new_tokens)
        reasoner, limit = self.trained.reasoner(), max_new_tokens or self.config.evaluation.max_new_tokens
        reasoner.require_room([reasoner.builder.question_ids(asked[0])], limit, use_latent)
        self.trained.model.eval()
        return _pieces(reasoner, asked[0], limit, use_latent)

    def think(self, questions: str | Sequence[str], top_k: int = 1) -> Thoughts:
        """Compute the latents without answering: hidden states, keys, values and decoded tokens of each latent after each iteration.

        Raises:
            UserError: the method has no latents, a question is empty, or top_k is below 1.
        """
        at_least(1, top_k=top_k)
        return think(self.trained.reasoner(), _questions(questions), top_k)

    def generate(
        self,
        inputs: str | Sequence[str] | Tensor,
        generation_config: Any = None,
        *,
        attention_mask: Tensor | None = None,
        streamer: Any = None,
        use_latent: bool = True,
        **settings: Any,
    ) -> Tensor:
        """Generate an answer after the latents, with the interface of transformers' `generate`.

        Args:
            inputs: questions, or their token ids [B, S], left-padded, with `attention_mask`.
            generation_config: a `GenerationConfig`; max_new_tokens, do_sample, temperature, top_k, top_p, min_p and typical_p are used.
            attention_mask: true at real tokens of `inputs`.
            streamer: such as `TextStreamer(model.tokenizer)`, for one question.
            use_latent: False writes the chain of thought.
            settings: fields of a `GenerationConfig`, as keywords; None is its default.

        Returns:
            Ids of the generated tokens, [B, N], padded on the right. The question is not included, and latents have no ids.

        Raises:
            UserError: a setting that decoding after latents does not have, such as num_beams; max_new_tokens is below 1; inputs of other
                shapes or none.
        """
        asked = inputs if isinstance(inputs, Tensor) else _questions(inputs)
        defaults = {"max_new_tokens": self.config.evaluation.max_new_tokens}
        self.trained.model.eval()
        return generate(self.trained.reasoner(), asked, generation_config, defaults, settings, attention_mask, streamer, use_latent)

    def save_pretrained(self, save_directory: str | Path, *, base: str | None = None, name: str | None = None) -> None:
        """Write a checkpoint: a peft adapter (or full weights), projection, tokenizer, configuration and model card.

        Args:
            save_directory: directory to write; an older checkpoint there is replaced.
            base: name of the base model to record, if others know it by another name than this machine does.
            name: name of this model on the card.

        Raises:
            UserError: the directory cannot be written to, or contains something other than a checkpoint.
        """
        save_with_card(self.trained, self.results, Path(save_directory), base=base, name=name)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        base: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Push model with kava",
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Upload to the hub and return the URL. Arguments are those of Hugging Face's `push_to_hub`, and `base` as in `save_pretrained`.

        Raises:
            UserError: the base model exists on this machine only, or the hub refuses the upload.
        """
        commit = {"commit_message": commit_message, "revision": branch, "create_pr": create_pr}
        return push(self.trained, self.results, repo_id, base=base, private=private, token=token, commit=commit)


def _questions(questions: str | Sequence[str]) -> list[str]:
    asked = [questions] if isinstance(questions, str) else list(questions)
    for number, question in enumerate(asked, 1):
        if not isinstance(question, str) or not question.strip():
            raise UserError(f"question {number} is {question!r}; ask with a text that is not empty")
    return asked


def _pieces(reasoner: Reasoner, question: str, max_new_tokens: int, use_latent: bool) -> Iterator[str]:
    text, pieces = "", StableText()
    for ids, _ in reasoner.stream(question, max_new_tokens, use_latent):
        text = reasoner.builder.text(ids)
        if piece := pieces.of(text):
            yield piece
    if rest := pieces.rest(text):
        yield rest
