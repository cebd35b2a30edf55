"""Benchmark workloads: a model shape with random weights, and random input of exact lengths."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig

from kava.checkpoint import Trained
from kava.config import Config, MiniDataConfig, MiniModelConfig, build_config
from kava.data.collate import Batch
from kava.data.mini.problems import vocabulary as words_of
from kava.data.mini.tokenizer import build_mini_tokenizer
from kava.data.sequences import SequenceBuilder
from kava.errors import UserError, at_least
from kava.model.build import random_model, silence_libraries
from kava.model.tokenizer import with_new_tokens
from kava.train.step_trace import Lengths, longest_batch

_MINI = MiniModelConfig()
ANSWER_PROMPT = "The answer is:"
# Four tokens of the answer prompt, a number and EOS.
MIN_ANSWER = 6


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder; the benchmarks build a Llama of these sizes.

    `vocabulary` 0 takes that of the built-in tokenizer; `spread` is the standard deviation of the random weights; `head` 0 takes hidden
    divided by heads; `mlp_matrices` is 3 for a gated MLP, else 2.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    spread: float = 0.02
    head: int = 0
    mlp_matrices: int = 3

    @property
    def head_size(self) -> int:
        """D, the size of a head."""
        return self.head or self.hidden // self.heads


SHAPES = {
    "llama-1b": ModelShape(2048, 8192, 16, 32, 8, 128256),
    "smollm2-135m": ModelShape(576, 1536, 30, 9, 3, 49152),
    "small": ModelShape(512, 1408, 8, 8, 4, 8192),
    "mini": ModelShape(_MINI.hidden_size, 2 * _MINI.hidden_size, _MINI.num_layers, _MINI.num_heads, _MINI.num_kv_heads, 0),
    # For the smoke test: small enough for loops, with weights large enough for a wrong sign to show.
    "tiny": ModelShape(32, 64, 3, 4, 2, 0, 0.1),
}


@dataclass(frozen=True)
class Workload:
    """Sizes and settings of one measurement; symbols as in docs/notation.md.

    Attributes:
        shape: a name in `SHAPES`.
        batch: B.
        question, cot, answer: Q, C and A in tokens, the same in every row; A includes the answer prompt and EOS.
        latents, iterations: M and T.
        lora_r: rank of the adapters; 0 trains all weights.
        dropout: dropout on the input of the adapters; 0 by default, so that every variant computes the same losses.
        dtype: dtype of the base model.
        device: torch device.
        threads: CPU threads of torch; 0 keeps its default.
        method: name of the training method.
        layers: L; 0 keeps that of the shape.
    """

    shape: str = "smollm2-135m"
    batch: int = 8
    question: int = 64
    cot: int = 32
    answer: int = 8
    latents: int = 24
    iterations: int = 3
    lora_r: int = 128
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 0
    method: str = "kava"
    layers: int = 0
    dropout: float = 0.0

    def config(self) -> Config:
        """Return the configuration with these values.

        Raises:
            UserError: a value is out of range.
        """
        at_least(0, lora_r=self.lora_r, threads=self.threads, layers=self.layers)
        at_least(1, batch_size=self.batch, question=self.question, cot=self.cot)
        at_least(MIN_ANSWER, answer=self.answer)
        lora = {"lora.enabled": self.lora_r > 0, "lora.r": self.lora_r or 1, "lora.dropout": self.dropout}
        latent = {"latent.num_tokens": self.latents, "latent.num_iterations": self.iterations}
        return build_config({"method": self.method}, "the benchmark", {**lora, **latent, "model.dtype": self.dtype})


def build_workload(workload: Workload) -> Trained:
    """Return a model with random weights on its device, and the tokenizer of the built-in problems; the seed is fixed."""
    silence_libraries()
    config, tokenizer = workload.config(), build_tokenizer()
    if workload.threads:
        torch.set_num_threads(workload.threads)
    torch.manual_seed(0)
    model = random_model(llama_config(workload.shape, tokenizer, workload.layers), config, workload.device)
    return Trained(model, tokenizer, config, workload.shape)


def llama_config(shape_name: str, tokenizer: Any, layers: int = 0) -> LlamaConfig:
    """Return the transformers configuration of a shape; `layers` replaces its number of layers, unless it is 0.

    Raises:
        UserError: the shape is unknown.
    """
    if shape_name not in SHAPES:
        raise UserError(f"unknown shape '{shape_name}'; valid shapes: {', '.join(SHAPES)}")
    shape = SHAPES[shape_name]
    return LlamaConfig(
        vocab_size=max(shape.vocabulary, len(tokenizer)),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=layers or shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        initializer_range=shape.spread,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )


def build_tokenizer() -> Any:
    """Return the built-in tokenizer with the new special tokens."""
    return with_new_tokens(build_mini_tokenizer(MiniDataConfig(), ANSWER_PROMPT))


def random_batch(workload: Workload, trained: Trained) -> Batch:
    """Return a training batch of random tokens, with the same lengths in every row."""
    rng, vocabulary = random.Random(0), trained.model.backbone.causal_lm.config.vocab_size
    reserved = {*trained.model.backbone.special_ids.tolist(), *trained.tokenizer.all_special_ids}
    ordinary = [token for token in range(vocabulary) if token not in reserved]
    # The teacher's trace omits the last step, so one extra step of a single token leaves a trace of C tokens.
    lengths = Lengths(workload.question, workload.cot + 1, 1, workload.answer)
    batch = longest_batch(trained.config, workload.batch, lengths, lambda count: rng.choices(ordinary, k=count))
    return batch.to(workload.device)


def random_questions(builder: SequenceBuilder, count: int, length: int) -> list[str]:
    """Return questions of exactly `length` tokens: random words of the built-in problems, not sentences."""
    rng, words = random.Random(0), words_of(MiniDataConfig())
    questions = [" ".join(rng.choice(words) for _ in range(length)) for _ in range(count)]
    assert all(len(builder.question_ids(question)) == length for question in questions)
    return questions
