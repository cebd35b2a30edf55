"""The mini experiment's base model: a small Llama pretrained to write chains of thought, once per seed.

The last zero to `pretrain_drop_steps` steps of its training traces are left out, so that it can also compute a step without writing
it. A teacher that cannot do this collapses when student and teacher share their weights. Every method starts from this model.
"""

import hashlib
import json
import multiprocessing
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from kava.cache.attention import PREFIX, register_backends
from kava.config import Config
from kava.config.schema import MiniModelConfig, TrainingConfig
from kava.data.collate import Collator
from kava.data.encoded_rows import lengths_of
from kava.data.mini.problems import generate
from kava.data.mini.tokenizer import build_mini_tokenizer
from kava.data.sequences import EncodedExample, SequenceBuilder
from kava.errors import UserError
from kava.methods import METHODS
from kava.model.build import assemble, silence_libraries
from kava.runtime import processes
from kava.runtime.cache_directory import cache_dir, ensured
from kava.runtime.device import choose_device
from kava.train.batches import StepBatches
from kava.train.curriculum import Curriculum
from kava.train.last_step_accuracy import unwritten_step_accuracy
from kava.train.loop import Loop
from kava.train.progress import Report
from kava.train.sampler import LengthSortedSampler

VERSION = 4


def mini_base_directory(config: Config) -> Path:
    """Cache directory of the base for this configuration and seed; its name contains a hash of all settings that affect the base."""
    shape = {
        "version": VERSION,
        "model": config.model.mini.model_dump(),
        "data": config.dataset.mini.model_dump(),
        "cot_type": config.dataset.cot_type,
        "answer_prompt": config.dataset.answer_prompt,
        "seed": config.training.seed,
        # Different rounding errors give a different base. The number of threads also affects rounding but is not in the name:
        # `about.json` records it, and all methods of a seed start from the base that is in the cache.
        "precision": config.system.mixed_precision,
        "attention": config.model.attn_implementation,
    }
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:12]
    return cache_dir() / "mini" / f"{config.dataset.cot_type}-seed{config.training.seed}-{digest}"


def ensure_mini_base(config: Config, quiet: bool = False) -> Path:
    """Directory of the mini experiment's pretrained base; pretrains it now if the cache has no complete one.

    Raises:
        UserError: the cache cannot be written to.
    """
    directory = mini_base_directory(config)
    # Several methods of one seed may start at once: the first makes the base, the others wait for it.
    with ensured(directory, "mini base", lambda staging: _pretrain_alone(config, staging, quiet)):
        return directory


def _pretrain_alone(config: Config, directory: Path, quiet: bool) -> None:
    """Pretrain; in a run of several processes, use a separate single-process child while the other processes wait for the lock."""
    if processes.world_size() == 1:
        _pretrain(config, directory, quiet)
        return
    with processes.alone():
        os.environ[processes.PARENT] = str(os.getpid())
        child = multiprocessing.get_context("spawn").Process(target=_pretrain_as_child, args=(config, directory, quiet))
        child.start()
        del os.environ[processes.PARENT]
    child.join()
    if child.exitcode:
        raise UserError(f"pretraining the mini base failed (exit code {child.exitcode}); run the same command in one process first")


def _pretrain_as_child(config: Config, directory: Path, quiet: bool) -> None:
    processes.end_with_parent()
    _pretrain(config, directory, quiet)


def _pretrain(config: Config, directory: Path, quiet: bool) -> None:
    mini = config.model.mini
    silence_libraries()
    tokenizer = build_mini_tokenizer(config.dataset.mini, config.dataset.answer_prompt)
    builder = SequenceBuilder(tokenizer, config.dataset.answer_prompt)
    examples = builder.encode_all(generate("train", config.dataset.mini, config.dataset.cot_type))
    set_seed(config.training.seed)
    register_backends()
    shape = mini_shape(mini, tokenizer)
    model = LlamaForCausalLM._from_config(shape, attn_implementation=PREFIX + config.model.attn_implementation)
    # The model reads plain text only: it has no embedding rows for new tokens.
    wrapped = assemble(model, [0, 0, 0], nn.Identity(), Config(method="full_cot"))
    collator = DroppingCollator(mini.pretrain_drop_steps, pad_id=tokenizer.pad_token_id, prompt_length=len(builder.prompt_ids))
    # Only settings that are in the base's name: other training settings of the run must not change a base of the same name.
    training = TrainingConfig(
        seed=config.training.seed,
        max_steps=mini.pretrain_steps,
        batch_size=mini.pretrain_batch_size,
        learning_rate=mini.pretrain_learning_rate,
        weight_decay=0.01,
        max_grad_norm=1.0,
        logging_steps=100,
    )
    report = Report(directory / "pretrain.log", f"pretraining the mini base (seed {config.training.seed})", quiet)
    if mini.pretrain_steps:
        device = torch.device(choose_device(config.system.device, "system.device"))
        sampler = LengthSortedSampler(lengths_of(examples), training.batch_size, training.seed)
        batches = StepBatches(examples, Curriculum(collator), training, device, sampler)
        with closing(report):
            Loop(wrapped, config.model_copy(update={"training": training}), batches, report).run()
        held_out = generate("validation", config.dataset.mini, config.dataset.cot_type, config.evaluation.validation_samples)
        encoded = builder.encode_all(held_out)
        share = unwritten_step_accuracy(wrapped.backbone.eval(), encoded, len(builder.prompt_ids), tokenizer.pad_token_id)
        report.say(f"answers right with the last step left out of the trace: {100 * share:.1f} % of {len(encoded)} validation problems")
    about = {"threads": torch.get_num_threads(), "torch": torch.__version__, "share_in_head": share if mini.pretrain_steps else None}
    (directory / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def mini_shape(mini: MiniModelConfig, tokenizer: Any) -> LlamaConfig:
    """transformers' configuration of the mini model."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=mini.hidden_size,
        intermediate_size=2 * mini.hidden_size,
        num_hidden_layers=mini.num_layers,
        num_attention_heads=mini.num_heads,
        num_key_value_heads=mini.num_kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


class DroppingCollator(Collator):
    """Collator that leaves out the last 0 to `most` CoT steps of an example; how many depends on a hash of the example."""

    def __init__(self, most: int, *, pad_id: int, prompt_length: int) -> None:
        super().__init__(METHODS["full_cot"], pad_id, prompt_length, num_latents=0)
        self.most = most

    def _written(self, example: EncodedExample, stage: int) -> list[int]:
        kept = len(example.steps) - min(example.seed % (self.most + 1), len(example.steps))
        return [token for step in example.steps[:kept] for token in step]
