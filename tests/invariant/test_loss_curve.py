"""The same seed gives the same run: 20 steps of the loop against values recorded in loss_curves.json.

After a change that is meant to move them:

    PYTHONPATH=src:tests python tests/invariant/test_loss_curve.py
"""

import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import set_seed

from helpers.tiny import WEIGHTS, lora_config, mini_builder, mini_examples, mini_tokenizer, tiny_lm
from kava.data.collate import build_collator
from kava.data.sequences import SPECIAL_TOKENS
from kava.methods import METHODS
from kava.model.backbone import Backbone
from kava.model.build import add_lora, settings_of
from kava.model.kava import KavaModel
from kava.model.projection import build_projection
from kava.train.batches import StepBatches
from kava.train.curriculum import Curriculum
from kava.train.loop import Loop
from kava.train.prepare import bucketed
from kava.train.progress import Report

RECORDED = Path(__file__).parent / "loss_curves.json"
STEPS, TOLERANCE = 20, 1e-4
LOGGED = ("loss", *WEIGHTS, "grad_norm", "learning_rate")
# Adapters with dropout (random numbers in every step) on each architecture, full fine-tuning, and a method without latents.
# A name is the method's, with the architecture where it is not Llama.
RUNS: dict[str, dict[str, Any]] = {
    "kava": {"lora.dropout": 0.1},
    "codi": {"lora.enabled": False},
    "full_cot": {"lora.dropout": 0.1, "training.gradient_accumulation_steps": 2, "training.batch_size": 4},
    "kava-qwen2": {"lora.dropout": 0.1},
    "kava-gpt2": {"lora.dropout": 0.1},
}
# A wider start than tiny_lm's: from 0.1 the loss of this one begins near that of guessing, with little way to fall.
SPREADS = {"gpt2": 0.15}
COMMON = {
    "latent.num_tokens": 4,
    "training.max_steps": STEPS,
    "training.batch_size": 8,
    "training.learning_rate": 8e-3,
    "training.logging_steps": 1,
    "system.device": "cpu",
}

Curve = list[dict[str, float]]


def make_loop(name: str, output_dir: Path, examples: int = 64, **overrides: Any) -> Loop:
    """The loop on a tiny model and the built-in problems."""
    method, _, kind = name.partition("-")
    config = lora_config(**{**COMMON, "method": method, "model.name": str(output_dir), **RUNS[name], **overrides})
    builder = mini_builder()
    special_ids = mini_tokenizer().convert_tokens_to_ids(SPECIAL_TOKENS)
    causal_lm = tiny_lm(kind or "llama", vocabulary=len(mini_tokenizer()), spread=SPREADS.get(kind, 0.1))
    set_seed(config.training.seed)
    embedding = causal_lm.get_input_embeddings()
    projection = build_projection(METHODS[method].uses_projection, embedding.weight.shape[1], embedding)
    wrapped = add_lora(causal_lm, special_ids, config) if config.lora.enabled else causal_lm
    model = KavaModel(Backbone(wrapped, special_ids), projection, METHODS[method], settings_of(config))
    encoded = [builder.encode(example) for example in mini_examples(examples)]
    collator = build_collator(config, builder)
    batches = StepBatches(encoded, Curriculum(collator), config.training, torch.device("cpu"), bucketed(config, encoded, collator))
    return Loop(model, config, batches, Report(output_dir / "train.log", "curve", quiet=True))


def run(name: str, output_dir: Path, seed: int = 42) -> Curve:
    """Losses, their terms, gradient norm and learning rate of every step."""
    loop = make_loop(name, output_dir, **{"training.seed": seed})
    loop.run()
    return [{key: entry[key] for key in LOGGED if key in entry} for entry in loop.state.log_history if "loss" in entry]


def environment() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")} | {"machine": platform.machine()}


@pytest.mark.parametrize("name", RUNS)
def test_the_curve_is_the_recorded_one(name: str, tmp_path: Path) -> None:
    recorded = json.loads(RECORDED.read_text())
    curve = run(name, tmp_path)
    assert len(curve) == STEPS
    for step, (values, expected) in enumerate(zip(curve, recorded["curves"][name], strict=True), 1):
        assert values.keys() == expected.keys()
        for key, value in values.items():
            assert value == pytest.approx(expected[key], rel=TOLERANCE, abs=1e-9), (
                f"{key} of step {step}; recorded with {recorded['environment']}, run with {environment()}"
            )


def test_the_same_seed_gives_the_same_run_and_another_another(tmp_path: Path) -> None:
    first, again, other = (run("kava", tmp_path, seed) for seed in (42, 42, 7))
    assert first == again
    assert all(values["loss"] != pytest.approx(expected["loss"], rel=1e-3) for values, expected in zip(other, first, strict=True))


def test_the_recorded_losses_fall() -> None:
    """The answer's loss: by a tenth at least from the first five steps to the last five."""
    for curve in json.loads(RECORDED.read_text())["curves"].values():
        assert sum(step["student_ce"] for step in curve[-5:]) < 0.9 * sum(step["student_ce"] for step in curve[:5])


def test_two_batches_of_four_are_one_batch_of_eight(tmp_path: Path) -> None:
    """One step of plain gradient descent on the same eight examples moves every weight by the same amount."""
    moved, logged = [], []
    for size, accumulation in ((8, 1), (4, 2), (1, 8)):
        schedule = {
            "max_steps": 1,
            "optimizer": "sgd",
            "lr_scheduler": "constant",
            "warmup_ratio": 0.0,
            "learning_rate": 1.0,
            "max_grad_norm": 1e6,
        }
        batches = {"batch_size": size, "gradient_accumulation_steps": accumulation, "weight_decay": 0.0}
        settings = {f"training.{name}": value for name, value in {**schedule, **batches}.items()}
        loop = make_loop("kava", tmp_path, examples=8, **settings, **{"lora.dropout": 0.0})
        before = {name: parameter.detach().clone() for name, parameter in loop.model.named_parameters() if parameter.requires_grad}
        loop.run()
        moved.append({name: parameter.detach() - before[name] for name, parameter in loop.model.named_parameters() if name in before})
        logged.append({name: loop.state.log_history[0][name] for name in LOGGED if name not in ("learning_rate", "step_ce")})
    scale = max(float(change.abs().max()) for change in moved[0].values())
    for other, terms in zip(moved[1:], logged[1:], strict=True):
        assert terms == pytest.approx(logged[0], rel=1e-5)
        for name, change in moved[0].items():
            assert float((other[name] - change).abs().max()) <= 1e-5 * scale, name


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        curves = {name: run(name, Path(directory)) for name in RUNS}
    RECORDED.write_text(json.dumps({"environment": environment(), "curves": curves}, indent=1) + "\n")
