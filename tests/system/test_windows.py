"""What Windows lacks is taken away from the package: no SIGUSR1, no fcntl, no resource, no folder that can be opened or flushed.

A stand-in for that system, which these tests have not seen: the guide's PowerShell script runs these commands there.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from system.test_chain import TINY

ROOT = Path(__file__).parents[2]
# The libraries keep what they have: they have Windows ways of their own.
LIKE_WINDOWS = """
import builtins, os, signal, sys
import accelerate, datasets, peft, tensorboard, torch.utils.tensorboard, transformers
from transformers.models.llama import modeling_llama

real_import, real_open, real_fsync = builtins.__import__, os.open, os.fsync

def without(name, names=None, *rest, **more):
    if name in ("fcntl", "resource", "pwd") and str((names or {}).get("__name__")).startswith("kava"):
        raise ImportError(f"No module named {name!r}")
    return real_import(name, names, *rest, **more)

def open_file(path, flags, *rest, **more):
    if os.path.isdir(path) and sys._getframe(1).f_globals.get("__name__", "").startswith("kava"):
        raise PermissionError(13, "Permission denied", path)
    return real_open(path, flags, *rest, **more)

def flush_if_writable(descriptor):
    import fcntl
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(9, "Bad file descriptor")
    real_fsync(descriptor)

builtins.__import__, os.open, os.fsync = without, open_file, flush_if_writable
del signal.SIGUSR1
import kava.runtime.atomic
kava.runtime.atomic.FOLDERS_ARE_FILES = False

from kava.cli import main
for command, words in COMMANDS:
    try:
        main(command, words)
    except SystemExit as stop:
        if stop.code:
            sys.exit(f"{command}: {stop.code}")
"""


@pytest.mark.slow
def test_training_and_evaluation_need_nothing_that_windows_lacks(tmp_path: Path) -> None:
    commands = [
        ("train", ["--config", "mini", "--output_dir", str(tmp_path / "run"), *TINY]),
        ("evaluate", ["--checkpoint", str(tmp_path / "run"), "--dataset", "test"]),
        ("run-multi-seed", ["--config", "mini", "--seeds", "42", "--output_dir", str(tmp_path), "--datasets", "test", *TINY]),
    ]
    (tmp_path / "seed_42").symlink_to(tmp_path / "run")
    environment = os.environ | {"KAVA_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    script = f"COMMANDS = {commands!r}{LIKE_WINDOWS}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trained 8 steps" in done.stdout
    assert "training is done" in done.stdout
    assert "evaluating" not in done.stdout
    assert (tmp_path / "aggregated_results.yaml").is_file()
