"""scripts/gpu_check.sh: every part is tried, its figures are kept, and one that fails shows in the exit code."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
ALL = ["tests", "product", "waits", "exact", "llama", "train-llama", "decoding", "against", "train-smollm2"]
# In place of a Python with a GPU: it says which part it was asked for, and fails in one.
PYTHON = """#!/bin/sh
[ "$1" = -c ] && exit 0
[ "$2" = waits ] && exit 3
[ "$1" = -m ] && echo '1 passed' || echo "{\\"part\\": \\"$2\\"}"
"""


def _run(output: Path, *parts: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), str(output), *parts]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **environment}, check=False)


def _parts(output: Path) -> list[str]:
    return [json.loads(line)["part"] for line in (output / "gpu_check.jsonl").read_text().splitlines()]


@pytest.fixture
def python(tmp_path: Path) -> str:
    """A stand-in for a Python that sees a GPU."""
    path = tmp_path / "python"
    path.write_text(PYTHON)
    path.chmod(0o755)
    return str(path)


def test_all_parts_run_and_one_that_fails_shows(tmp_path: Path, python: str) -> None:
    ran = _run(tmp_path / "out", PYTHON=python)
    assert [line.removeprefix("== ") for line in ran.stderr.splitlines() if line.startswith("== ")] == ALL
    assert _parts(tmp_path / "out") == [name for name in ALL if name not in ("tests", "waits")]
    assert (tmp_path / "out" / "tests.txt").read_text() == "1 passed\n"
    assert ran.returncode == 1
    assert "waits ended with code 3" in ran.stderr


def test_named_parts_run_alone(tmp_path: Path, python: str) -> None:
    ran = _run(tmp_path / "out", "llama", "profile", PYTHON=python)
    assert (_parts(tmp_path / "out"), ran.returncode) == (["llama", "profile"], 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    ran = _run(tmp_path)
    assert (ran.returncode, ran.stderr) == (2, "gpu_check: torch sees no GPU here; run this on a machine that has one\n")
