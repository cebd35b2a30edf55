"""Expected hours: FLOPs by formula (`kava.tools.bench.flops`), over a share of the card's published peak assumed and not measured."""

from typing import Any

from kava.config import Config
from kava.methods import METHODS
from kava.tools.bench.flops import step_flops
from kava.tools.bench.workload import Workload
from kava.tools.plan.shapes import DataShape, sizes_of

# Dense bf16 peak in TFLOP/s from NVIDIA's data sheets, of a card with that much memory: A10, A100 40 GB, A100 80 GB.
PEAK_TFLOPS = {24: 125.0, 40: 312.0, 80: 312.0}
UTILISATION = 0.3


def example_flops(shape: Any, config: Config, data: DataShape) -> int:
    """FLOPs of one row of mean length, forward and backward; a curriculum counts at its longest stage."""
    method = METHODS[config.method]
    whole = method.writes_cot or method.curriculum == "remove_tokens" or not config.dataset.drop_last_step
    workload = Workload(
        batch=1,
        question=data.mean.question,
        cot=data.mean.cot if whole else data.mean.cot - data.mean.last_step,
        answer=data.mean.answer,
        latents=config.latent.num_tokens,
        iterations=config.latent.num_iterations,
        lora_r=config.lora.r if config.lora.enabled else 0,
        method=config.method,
    )
    return step_flops(workload, sizes_of(shape), recompute=config.training.gradient_checkpointing)


def training_examples(config: Config, data: DataShape) -> float:
    """Rows that a run sees: epochs, or optimizer steps times the effective batch."""
    training = config.training
    if training.max_steps > 0:
        return float(training.max_steps * training.batch_size * training.gradient_accumulation_steps)
    return float(data.rows * training.epochs)


def hours(flops: int | float, examples: int | float, gpus: int, tflops: float, utilisation: float) -> float:
    """Hours of wall clock on so many cards; validation by generation is not in it."""
    return flops * examples / (gpus * tflops * 1e12 * utilisation) / 3600
