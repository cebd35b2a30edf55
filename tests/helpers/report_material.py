"""An outputs directory as six configurations with three seeds leave it: results, per-question rows, event files, an explanation."""

import random
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from helpers.result_files import GUIDE_CONFIG, make_result, make_row
from helpers.tiny import lora_config, mini_builder, mini_examples, mini_model
from kava.config import load_config
from kava.explain.explain import Options, explain
from kava.explain.record import write_explanation
from kava.generate import Reasoner
from kava.results import Row, result_path, rows_path, write_result, write_rows

SEEDS = (42, 123, 456)
QUESTIONS = 200
CONFIGURATIONS = {
    "full_cot": {"method": "full_cot"},
    "no_cot": {"method": "no_cot"},
    "kava": {},
    "kava_T1": {"latent.num_iterations": 1},
    "kava_no_proj": {"loss.use_projection": False},
    "kava_mse": {"loss.kv_loss_type": "mse"},
}
TERMS = ("loss", "student_ce", "teacher_ce", "codi", "kv", "learning_rate", "grad_norm")


def write_outputs(root: Path) -> Path:
    """18 runs on gsm8k and svamp, and the explanation of a tiny random model."""
    rng = random.Random(0)
    for place, (name, overrides) in enumerate(CONFIGURATIONS.items()):
        for seed in SEEDS:
            directory = root / name / f"seed_{seed}"
            config = load_config(GUIDE_CONFIG, {"training.seed": seed, **overrides})
            for dataset in ("gsm8k", "svamp"):
                rows = _rows(rng, 0.9 - 0.1 * place)
                correct = sum(row.correct for row in rows)
                passes = 65.0 if name == "full_cot" else 6.9
                write_rows(rows_path(result_path(directory, dataset)), rows)
                write_result(result_path(directory, dataset), make_result(seed, dataset, correct, QUESTIONS, passes=passes, config=config))
            _write_events(directory / "logs", seed)
    options = Options("outputs/kava", "built-in", details=3, max_new_tokens=4, say=lambda text: None)
    reasoner = Reasoner(mini_model(spread=0.3), mini_builder(), 4, 2)
    explanation = explain(reasoner, lora_config(**{"evaluation.batch_size": 4}), list(mini_examples(6)), options)
    write_explanation(root / "kava" / "explain" / "explanation.json", explanation)
    return root


def _rows(rng: random.Random, ability: float) -> list[Row]:
    rows = []
    for number in range(QUESTIONS):
        steps = 1 + number % 4
        chance = max(ability - 0.12 * steps, 0.05)
        rows.append(make_row(number, gold=str(number % 9), correct=rng.random() < chance, steps=steps, confidence=min(1.0, chance + 0.1)))
    return rows


def _write_events(logs: Path, seed: int) -> None:
    writer = SummaryWriter(str(logs))
    for step in range(0, 3000, 25):
        for index, term in enumerate(TERMS):
            writer.add_scalar(f"train/{term}", (index + 1) * 2.0 ** (-step / 500) + 0.001 * (seed % 7), step)
    for step in range(500, 3000, 500):
        writer.add_scalar("eval/accuracy", step / 6000, step)
    writer.close()
