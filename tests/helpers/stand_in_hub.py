"""A stand-in for a cluster's shared library: tiny random models and a few rows under the names that the paper's configurations type."""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.tiny import HIDDEN, LAYERS, MINI, PROMPT
from kava.data.mini.problems import generate
from kava.data.mini.tokenizer import build_mini_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATASETS = {
    "whynlp/gsm8k-aug": ("train.jsonl", "validation.jsonl", "test.jsonl"),
    "openai/gsm8k": ("main/train.jsonl", "main/test.jsonl"),
}


def snapshot(library: Path, kind: str, name: str) -> Path:
    """The directory in which Hugging Face's libraries look for the files of a name (kind: models, datasets)."""
    repository = library / f"{kind}--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    return repository / "snapshots" / COMMIT


def fill(library: Path) -> None:
    """Put the model and the data of `llama1b_aug` there, and the data of its first test set."""
    tokenizer = build_mini_tokenizer(MINI, PROMPT)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = snapshot(library, "models", "meta-llama/Llama-3.2-1B-Instruct")
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    for name, files in DATASETS.items():
        for file in files:
            _write(snapshot_file(library, name, file), name, Path(file).stem)


def snapshot_file(library: Path, name: str, file: str) -> Path:
    """A file of a data set, in folders that exist."""
    folder = library / f"datasets--{name.replace('/', '--')}" / "snapshots" / COMMIT
    path = (folder if folder.exists() else snapshot(library, "datasets", name)) / file
    path.parent.mkdir(exist_ok=True)
    return path


def _write(path: Path, name: str, split: str) -> None:
    rows = []
    for example in generate(split, MINI, limit=40):
        if name == "openai/gsm8k":
            rows.append({"question": example.question, "answer": "\n".join(example.steps) + f"\n#### {example.answer}"})
        else:
            rows.append({"question": example.question, "steps": list(example.steps), "answer": example.answer})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
