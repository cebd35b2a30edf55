"""The Slurm scripts with programs of their own in place of Slurm's: what they submit, and the command that continues a job."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SBATCH = 'echo "$SBATCH_GRES|$*" >> "$CALLS"; echo 7'
PYTHON = '[[ $1 == --version ]] && echo Python 3.11.0; [[ $1 != train.py ]] || { echo "$*" >> "$CALLS"; exit 2; }'


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for name in ("hpc_run_all.sh", "submit_multi_seed.slurm", "submit_aggregate.slurm", "train.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("scripts", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "configs" / "site.env").write_text("")
    (tmp_path / "bin").mkdir()
    for name, text in {"sbatch": SBATCH, "squeue": "true", "scontrol": "true", "python3": PYTHON}.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    return tmp_path


def run(site: Path, *words: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("KAVA_", "SLURM_", "VIRTUAL_ENV", "CONDA"))}
    own |= {"PATH": f"{site / 'bin'}:{os.environ['PATH']}", "CALLS": str(site / "calls"), **variables}
    done = subprocess.run(words, cwd=site, env=own, capture_output=True, text=True, timeout=60, check=False)
    return done, (site / "calls").read_text().splitlines() if (site / "calls").exists() else []


def test_the_aggregation_asks_for_no_gpu(site: Path) -> None:
    done, calls = run(site, "./hpc_run_all.sh", "mini", SBATCH_GRES="gpu:a100:1", KAVA_AGGREGATE_PARTITION="cpu")
    seeds, aggregation = calls
    assert seeds.startswith("gpu:a100:1|--parsable --job-name=kava-mini --array=0-2"), done.stderr
    assert aggregation.startswith("|--parsable --job-name=kava-mini-mean --partition=cpu")


@pytest.mark.parametrize(
    ("variables", "gres", "seeds", "trained"),
    [
        ({}, "", "", "123"),
        ({"SLURM_GPUS_ON_NODE": "4", "KAVA_SEEDS": "7 8 9"}, "--gres=gpu:4 ", ",KAVA_SEEDS='7 8 9'", "8"),
    ],
)
def test_the_command_that_continues_a_job_says_what_the_first_one_said(
    site: Path, variables: dict[str, str], gres: str, seeds: str, trained: str
) -> None:
    done, calls = run(
        site, "bash", "submit_multi_seed.slurm", CONFIG="mini", SLURM_ARRAY_TASK_ID="1", SLURM_SUBMIT_DIR=str(site), **variables
    )
    assert f"continue with: sbatch {gres}--array=1 --export=CONFIG=mini{seeds} submit_multi_seed.slurm" in done.stdout + done.stderr
    assert all(f"--seed {trained} " in call for call in calls)
