"""What a run says at its start: where, how and how long."""

import re

import pytest
import torch

from helpers.tiny import lora_config, mini_builder, mini_examples
from kava.data.collate import build_collator
from kava.train.batches import StepBatches
from kava.train.curriculum import Curriculum
from kava.train.progress import TIMED, WARM_UP, Report
from kava.train.state import State
from kava.train.train import start_line


def test_one_line_says_device_precision_batch_and_steps() -> None:
    config = lora_config(**{"training.batch_size": 2, "training.gradient_accumulation_steps": 2, "training.epochs": 3.0})
    builder = mini_builder()
    examples = [builder.encode(example) for example in mini_examples(8)]
    curriculum = Curriculum(build_collator(config, builder))
    line = start_line(config, torch.device("cpu"), StepBatches(examples, curriculum, config.training, torch.device("cpu")))
    threads = torch.get_num_threads()
    words = "4 examples a step (2 x 2 x 1: batch, accumulation, processes)"
    assert line == f"the CPU, {threads} threads; no mixed precision; {words}; 6 steps"


def test_after_a_few_steps_it_says_how_long(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard output, under the run's name, once; not in the log, which is the same for a run that was cut off."""
    report, state = Report(tmp_path / "train.log", "llama1b_aug seed 42"), State(max_steps=10**6)
    report.begin(state)
    for _ in range(WARM_UP + TIMED + 3):
        state.global_step += 1
        report.step(state)
    said = capsys.readouterr()
    assert re.fullmatch(r"llama1b_aug seed 42: \S+ s/step: about \d+ minutes for the 999995 steps left, validations apart\n", said.out)
    assert said.err == ""
    assert not (tmp_path / "train.log").exists()
