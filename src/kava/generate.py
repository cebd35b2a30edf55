"""Inference: read a question, think in latents (or in words, or not at all), write the answer; batched and cached.

reasoner = open_checkpoint("builtin:mini").reasoner()
reasoner.generate([kava.data.mini.problems.EXAMPLE])[0].text
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from kava.cache.layers import cache_bytes
from kava.cache.prefix import Extension, Prefix
from kava.data.answer_types import read_answer
from kava.data.collate import left_padded
from kava.data.sequences import SequenceBuilder
from kava.errors import at_least
from kava.model.backbone import evaluating
from kava.model.decoding import Choose, ReplayedStart, choose_token, start_decoding
from kava.model.kava import KavaModel
from kava.model.latents import Thought
from kava.runtime.stage import stage

PADDED_QUESTION = 16
"""Questions are padded to a multiple of this when passes are replayed, so that few shapes occur, if the model can read as much."""


@dataclass(frozen=True)
class Generation:
    """One answered question.

    Attributes:
        text: what was written after the fixed text (latent and direct modes) or after the question (written CoT).
        token_ids: the same as ids, EOS left out.
        forward_passes: calls of the backbone that this question alone would have needed (method.md, section 6).
        generated_tokens: tokens written, EOS included.
        cache_bytes: KV cache of this question at the end, without padding.
        complete: EOS came before `max_new_tokens` ran out.
        answer: the answer read from the text (of the builder's answer type): the first one after the fixed text, or after the last
            answer prompt of a written CoT; None if there is none.
        confidence: the model's probability of the answer it wrote (all tokens after the last fixed text, at temperature 1).
    """

    text: str
    token_ids: list[int]
    forward_passes: int
    generated_tokens: int
    cache_bytes: int
    complete: bool
    answer: str | None = None
    # Not compared: a batch and a single question agree on it only up to rounding error.
    confidence: float = field(default=float("nan"), compare=False)


class Reasoner:
    """Answers questions with one model.

    Args:
        model: the trained model.
        builder: its tokenizer and wording.
        num_latents, num_iterations: M and T.
    """

    def __init__(self, model: KavaModel, builder: SequenceBuilder, num_latents: int, num_iterations: int) -> None:
        self.model, self.builder = model, builder
        self.num_latents, self.num_iterations = num_latents, num_iterations
        self._prompts: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}

    def with_iterations(self, num_iterations: int) -> "Reasoner":
        """The same model with another T."""
        return Reasoner(self.model, self.builder, self.num_latents, num_iterations)

    def generate(
        self,
        questions: Sequence[str],
        *,
        batch_size: int = 32,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        use_latent: bool = True,
    ) -> list[Generation]:
        """Answer questions, in batches of similar length; results come in the order asked.

        Args:
            questions: plain text.
            batch_size: questions read together.
            max_new_tokens: stop after this many tokens without EOS.
            temperature: 0 is greedy.
            seed: seed for sampling.
            use_latent: False makes a method with latents write its CoT instead, as its teacher does.

        Raises:
            UserError: an option is out of range; a question and its answer may grow longer than the model's window or range of positions.
        """
        at_least(1, batch_size=batch_size, max_new_tokens=max_new_tokens)
        at_least(0, temperature=temperature)
        # Sharded weights that are gathered in inference mode could not be trained afterwards.
        with torch.no_grad() if self.model.is_sharded else torch.inference_mode(), evaluating(self.model):
            ids = self.builder.all_question_ids(questions)
            self.require_room(ids, max_new_tokens, use_latent)
            order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
            results: dict[int, Generation] = {}
            generator = torch.Generator(self.device).manual_seed(seed)
            with stage("answering", len(ids), "questions") as advance:
                for start in range(0, len(order), batch_size):
                    chunk = order[start : start + batch_size]
                    prompted = not self.writes_trace(use_latent)
                    # Not kept in a variable: the prefix must be freed before the next questions are read.
                    begin = partial(self.start, [ids[index] for index in chunk], use_latent, max_new_tokens)
                    answered = self.write(*begin(), max_new_tokens, temperature, generator, prompted=prompted)
                    results.update(zip(chunk, answered, strict=True))
                    advance(len(chunk))
        return [results[index] for index in range(len(ids))]

    def require_room(self, questions: list[list[int]], max_new_tokens: int, use_latent: bool = True) -> None:
        """Check that questions and answers fit into the model's window or range of positions.

        Raises:
            UserError: a question and its answer may grow longer.
        """
        self.model.backbone.require(self._entries(questions, max_new_tokens, use_latent))

    def _entries(self, questions: list[list[int]], max_new_tokens: int, use_latent: bool) -> int:
        """Cache entries of the longest question with its thought and an answer of `max_new_tokens`."""
        thought = self.num_latents + 2 if self.model.method.uses_latents and use_latent else 0
        return max(map(len, questions), default=0) + thought + len(self.builder.prompt_ids) + max_new_tokens

    @property
    def _prompt(self) -> Tensor:
        """Token ids of the answer's fixed text, copied to the device once, outside graph capture."""
        key = (tuple(self.builder.prompt_ids), self.device)
        if key not in self._prompts:
            with torch.inference_mode(False):
                self._prompts[key] = torch.tensor(self.builder.prompt_ids, device=self.device)
        return self._prompts[key]

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.model.backbone.special_ids.device

    def start(self, questions: list[list[int]], use_latent: bool = True, max_new_tokens: int = 0) -> tuple[Prefix, Tensor, int]:
        """Read questions up to the first free token: (prefix, logits of that token [B, V], forward passes so far).

        When passes are replayed, the result is valid until the next batch of the same shape. Padding leaves room for `max_new_tokens`.
        """
        backbone, graphs = self.model.backbone, self.model.backbone.graphs
        if graphs is None:
            return self._start(*self.pad(questions), use_latent)
        spare = backbone.spare(self._entries(questions, max_new_tokens, use_latent))
        ids, mask = self.pad(questions, max(0, min(spare, -max(map(len, questions)) % PADDED_QUESTION)))
        backbone.adapters.refresh_if_changed()
        key = ("start", *ids.shape, use_latent, self.num_latents, self.num_iterations, self.model.method.name)
        start = graphs.get(key, lambda: ReplayedStart(lambda ids, mask: self._start(ids, mask, use_latent), ids, mask, graphs))
        return start(ids, mask)

    def _start(self, ids: Tensor, mask: Tensor, use_latent: bool) -> tuple[Prefix, Tensor, int]:
        backbone, method = self.model.backbone, self.model.method
        if not (method.uses_latents and use_latent):
            prompt = None if self.writes_trace(use_latent) else backbone.embed(self._prompt.expand(len(ids), -1))
            run = backbone.read(ids, mask, prompt)
            return run.prefix, self._next_logits(run), 1
        thought, passes = self.think(ids, mask)
        return *self.conclude(thought.prefix), passes + 1

    def conclude(self, thought: Prefix) -> tuple[Prefix, Tensor]:
        """Read `<eot>` and the answer's fixed text after the latents: (prefix, logits of the first free token [B, V])."""
        backbone, batch = self.model.backbone, len(thought.mask)
        eot = backbone.special_embeddings()[1:2].expand(batch, -1, -1)
        run = backbone.extend(thought, torch.cat([eot, backbone.embed(self._prompt.expand(batch, -1))], dim=1))
        return run.prefix, self._next_logits(run)

    def think(self, ids: Tensor, mask: Tensor, keep_trajectory: bool = False) -> tuple[Thought, int]:
        """Read padded questions, then reason in latents; returns the thought and the number of passes, one of them for the questions."""
        _, thought = self.model.think(ids, mask, self.num_latents, self.num_iterations, keep_trajectory=keep_trajectory)
        sequential = self.model.method.latents == "sequential"
        return thought, 1 + (self.num_latents if sequential else min(self.num_iterations, self.num_latents))

    def writes_trace(self, use_latent: bool = True) -> bool:
        """Whether the model writes a chain of thought and the answer prompt; otherwise it continues after the given fixed text."""
        method = self.model.method
        return method.writes_cot or (method.uses_latents and not use_latent)

    @torch.no_grad()
    def write(
        self,
        prefix: Prefix,
        logits: Tensor,
        passes: int,
        max_new_tokens: int,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        *,
        prompted: bool = True,
        watch: Callable[[list[list[int]], Callable[[int], Generation]], bool] | None = None,
    ) -> list[Generation]:
        """Generate from a prefix until every row has ended.

        Args:
            prefix, logits, passes: what `start` returns.
            max_new_tokens, temperature, generator: when to stop, how to sample.
            prompted: the prefix ends in the answer's fixed text.
            watch: called after each new token with every row's tokens so far and a function row -> answer; False stops, as the limit does.
        """
        written: list[list[int]] = [[] for _ in logits]
        chances: list[list[float]] = [[] for _ in logits]
        entry_bytes = cache_bytes(prefix.layers) // max(prefix.mask.numel(), 1)
        start_entries = prefix.mask.sum(1).tolist()
        choose = partial(choose_token, temperature=temperature, generator=generator)

        def finish(row: int) -> Generation:
            return self._finish(written[row], chances[row], passes, start_entries[row], entry_bytes, prompted)

        for rows, tokens, scores in self.tokens(prefix, logits, max_new_tokens, choose):
            chance = scores.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0].tolist()
            for row, token, probability in zip(rows, tokens.tolist(), chance, strict=True):
                written[row].append(token)
                chances[row].append(probability)
            if watch and not watch(written, finish):
                break
        return [finish(row) for row in range(len(written))]

    @torch.no_grad()
    def stream(self, question: str, max_new_tokens: int, use_latent: bool = True) -> Iterator[tuple[list[int], int]]:
        """Answer one question greedily; yields the tokens so far (EOS included) and the forward passes before the first of them.

        Reading the question is part of the first token: what `start` returns is valid only until the next question is read.
        """
        prefix, logits, passes = self.start([self.builder.question_ids(question)], use_latent, max_new_tokens)
        written: list[int] = []
        for _, tokens, _ in self.tokens(prefix, logits, max_new_tokens):
            written.append(int(tokens))
            yield list(written), passes

    @torch.no_grad()
    def tokens(
        self, prefix: Prefix, logits: Tensor, max_new_tokens: int, choose: Choose | None = None
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Generate from a prefix, one token at a time for every row that has not ended. All generation uses this loop.

        Args:
            prefix, logits: what `start` returns.
            max_new_tokens: when to stop.
            choose: logits [K, V] -> tokens [K]; default: greedy.

        Yields:
            The indices of the rows, their tokens (EOS included) and the logits that these were chosen from.
        """
        eos, rows = self.builder.tokenizer.eos_token_id, list(range(len(logits)))
        writing = start_decoding(self.model.backbone, prefix, max(max_new_tokens - 1, 0))
        for left in range(max_new_tokens, 0, -1):
            tokens = choose(logits) if choose else logits.argmax(-1)
            yield rows, tokens, logits
            going = [row for row, token in enumerate(tokens.tolist()) if token != eos]
            if not going or left == 1:
                return
            if len(going) < len(rows):
                keep = torch.tensor(going, device=tokens.device)
                writing.keep(keep)
                tokens, rows = tokens[keep], [rows[row] for row in going]
            logits = writing.next(tokens)

    def _finish(self, ids: list[int], chances: list[float], passes: int, entries: int, entry_bytes: int, prompted: bool) -> Generation:
        complete = bool(ids) and ids[-1] == self.builder.tokenizer.eos_token_id
        content = ids[:-1] if complete else ids
        fed = max(len(ids) - 1, 0)
        text = self.builder.text(content)
        return Generation(
            text=text,
            token_ids=content,
            forward_passes=passes + fed,
            generated_tokens=len(ids),
            cache_bytes=(entries + fed) * entry_bytes,
            complete=complete,
            answer=read_answer(text, self.builder.answer_prompt, self.builder.answer_type, after_prompt=prompted),
            confidence=math.exp(sum(chances[self._answer_start(ids) :])),
        )

    def _answer_start(self, ids: list[int]) -> int:
        """Index of the first token after the last fixed text; 0 if the model wrote none."""
        prompt = self.builder.prompt_ids
        ends = (stop for stop in range(len(ids), len(prompt) - 1, -1) if ids[stop - len(prompt) : stop] == prompt)
        return next(ends, 0)

    def _next_logits(self, run: Extension) -> Tensor:
        return self.model.backbone.logits(run.hidden[:, -1])

    def pad(self, questions: list[list[int]], more: int = 0) -> tuple[Tensor, Tensor]:
        """Left-padded ids and mask of tokenised questions, with `more` columns beyond the longest question."""
        ids, mask = left_padded(questions, self.builder.tokenizer.pad_token_id, max(map(len, questions)) + more)
        return ids.to(self.device), mask.to(self.device)

    def batches(self, questions: Sequence[str], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Padded batches (see `pad`) of `batch_size` questions, in the given order."""
        for start in range(0, len(questions), batch_size):
            yield self.pad(self.builder.all_question_ids(questions[start : start + batch_size]))
