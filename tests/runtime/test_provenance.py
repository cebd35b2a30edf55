"""Provenance says which code, packages and machine, and nothing about the person."""

import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from kava.runtime import provenance


def test_it_names_versions_machine_and_command():
    record = provenance.collect(["/opt/somewhere/evaluate.py", "--eval_dataset", "my data"], wall_seconds=1.23456)
    assert record["command_line"] == "evaluate.py --eval_dataset 'my data'"
    assert record["packages"]["torch"] == metadata.version("torch")
    assert set(record["packages"]) == {"kava", "torch", "transformers", "peft", "accelerate", "tokenizers", "datasets", "numpy"}
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["cpu_count"] == os.cpu_count()
    assert record["time_utc"].endswith("+00:00")
    assert record["wall_seconds"] == 1.235
    assert yaml.safe_load(yaml.safe_dump(record)) == record


def test_home_is_a_tilde_and_a_root_home_changes_nothing(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert provenance.collect(["train.py", "--output_dir", "/home/ada/runs"])["command_line"] == "train.py --output_dir '~/runs'"
    monkeypatch.setenv("HOME", "/")
    assert provenance.collect(["train.py", "--output_dir", "/data/runs"])["command_line"] == "train.py --output_dir /data/runs"


def test_a_user_without_a_home_directory_is_no_obstacle(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a user that the system does not know
    with pytest.raises(RuntimeError):
        Path.home()
    assert provenance.collect(["train.py", "--output_dir", "/data/runs"])["command_line"] == "train.py --output_dir /data/runs"


def _git(directory: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", "-C", str(directory), *identity, *words], check=True, capture_output=True, text=True).stdout.strip()


def test_commit_and_dirty_flag_of_the_checkout(tmp_path, monkeypatch):
    module = tmp_path / "package" / "provenance.py"
    module.parent.mkdir()
    module.write_text("x = 1\n")
    monkeypatch.setattr(provenance, "__file__", str(module))
    assert (provenance.collect([])["commit"], provenance.collect([])["dirty"]) == (None, None)  # no checkout

    _git(tmp_path, "init", "-q")
    assert provenance.collect([])["commit"] is None  # a checkout, but the package is not its own: an environment inside a project
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "one")
    record = provenance.collect([])
    assert (record["commit"], record["dirty"]) == (_git(tmp_path, "rev-parse", "HEAD"), False)

    (tmp_path / "notes.txt").write_text("untracked files change no code")
    assert provenance.collect([])["dirty"] is False
    module.write_text("x = 2\n")
    assert provenance.collect([])["dirty"] is True


def test_it_is_quick_and_loads_no_torch():
    code = (
        "import time, sys; from kava.runtime.provenance import collect; t = time.time(); collect();"
        "print(time.time() - t, 'torch' in sys.modules)"
    )
    started = time.monotonic()
    seconds, loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert float(seconds) < 2
    assert loaded == "False"
    assert time.monotonic() - started < 10


def test_a_slip_in_the_time_for_git_is_said_at_the_start() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kava", "evaluate", "--checkpoint", "builtin:mini", "--eval_dataset", "builtin:mini/test"],
        capture_output=True, text=True, check=False, env=os.environ | {"KAVA_GIT_SECONDS": "soon"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "kava: KAVA_GIT_SECONDS is 'soon'; set it to a number of seconds, or leave it out for 10\n"
