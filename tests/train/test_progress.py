"""What a run says at its start: where, how and how long."""

import errno
import io
import re
import signal
import sys
import unittest.mock
from pathlib import Path

import pytest
import torch
from rich.console import Console

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
    assert re.fullmatch(
        r"llama1b_aug seed 42: \S+ s/step: about \S+ (s|minutes?|hours) for the 999995 steps left, without validation\n", said.out
    )
    assert said.err == ""
    assert not (tmp_path / "train.log").exists()


def test_no_half_minute_is_silent(tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where steps are slow and entries of the log rare, as in a pipe; lines between them go to the terminal alone."""
    monkeypatch.setattr("kava.train.progress.EVERY", 0.0)
    report, state = Report(tmp_path / "train.log", "run seed 1"), State(max_steps=100)
    report.begin(state)
    for _ in range(7):
        state.global_step += 1
        report.step(state)
    lines = [line for line in capsys.readouterr().out.splitlines() if "s/step" not in line]
    assert lines == [f"run seed 1: step {step}/100" for step in (1, 3, 4, 6, 7)]
    assert not (tmp_path / "train.log").exists()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_bar_keeps_name_steps_and_time(tmp_path, width: int) -> None:
    """The newest numbers have lines of their own, so that they push nothing off the line above."""
    report, state = Report(tmp_path / "train.log", "llama1b_aug_natural_language seed 42"), State(max_steps=15065)
    report.console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    report.begin(state)
    state.global_step = 1200
    report.step(state)
    report.log(state, {"loss": 1.18, "grad_norm": 2.0, "learning_rate": 1e-3, "student_ce": 0.48, "codi": 0.2, "kv": 0.3})
    assert report.bar
    first, *numbers = _rendered(report)
    report.close()
    assert re.match(r"llama1b_aug\S* .*[━╸] +1200/15065 \S+ left$", first), first
    assert " ".join(numbers).startswith("loss 1.18, grad 2")
    assert all(len(line) <= width for line in [first, *numbers])


def _rendered(report: Report) -> list[str]:
    assert report.bar
    console = Console(file=io.StringIO(), force_terminal=True, width=report.console.width, color_system=None)
    console.print(report.bar.get_renderable())
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_pipe_that_nobody_reads_is_a_closed_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train.py | tee`, and Ctrl-C ends tee first: the run has to come to its checkpoint."""
    received: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: received.append(number))
    try:
        report = Report(tmp_path / "train.log", "a run")
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        monkeypatch.setattr("builtins.print", unittest.mock.Mock(side_effect=BrokenPipeError(errno.EPIPE, "Broken pipe")))
        report.tell("a line")
        report.tell("another line")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert received == [signal.SIGHUP]
    assert report.quiet
    monkeypatch.setattr("builtins.print", unittest.mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        Report(tmp_path / "train.log", "a run").tell("a line")
