"""`python smoke_test.py` as typed; and that its checks fail where something is really wrong."""

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

import kava.eviction
from kava.eviction.crop import crop
from kava.model.backbone import Backbone
from kava.model.kava import KavaModel
from kava.tools.smoke import method, training
from kava.tools.smoke.device import attention_backends
from kava.tools.smoke.lab import CheckFailedError, Lab
from kava.tools.smoke.smoke_test import CHECKS, Check, run_check

ROOT = Path(__file__).parents[2]


def run(cwd: Path = ROOT, code: int = 0, **variables: str) -> list[str]:
    """Its lines."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", **variables}
    command = [sys.executable, str(ROOT / "smoke_test.py")]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


def statuses(lines: list[str]) -> dict[str, str]:
    names = {check.name for check in CHECKS}
    return {name: line.split()[0] for line in lines for name in names if line[7:].startswith(f"{name}  ")}


def test_every_check_passes_in_the_repository() -> None:
    lines = run(KAVA_DATA_DIR="")
    found = statuses(lines)
    assert found == dict.fromkeys((check.name for check in CHECKS), "ok") | dict.fromkeys(
        ("optional packages", "hub", "local data"), "info"
    )
    assert lines[-1].startswith(f"{len(CHECKS)} checks in ")
    assert lines[-1].endswith(f"{len(CHECKS) - 3} ok, 3 for information, 0 failed")
    assert any("kept entries match the formulas" in line for line in lines)
    assert any("HF_HUB_OFFLINE is set" in line for line in lines)


def test_failures_carry_their_cure_and_stop_nothing(tmp_path: Path) -> None:
    """A configuration with a key that is none, a data directory that is none, and a package that cannot be imported."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mini.yaml").write_text("trainings: {}\n")
    package = tmp_path / "peft"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('peft is broken')\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    lines = run(tmp_path, 1, PYTHONPATH=paths, KAVA_DATA_DIR="/no/such/directory")
    found = statuses(lines)
    assert found.keys() == {check.name for check in CHECKS}
    assert {name for name, status in found.items() if status != "FAILED"} >= {
        "python",
        "optional packages",
        "eviction",
        "loss functions",
        "hub",
    }
    for name, why, cure in [
        ("training losses", "ImportError: peft is broken", "pip install -r requirements.txt"),
        ("configurations", "configs/mini.yaml: unknown key 'trainings'", "correct the key that is named"),
        ("local data", "KAVA_DATA_DIR=/no/such/directory is no directory", "point KAVA_DATA_DIR at"),
    ]:
        place = next(number for number, line in enumerate(lines) if line.startswith("FAILED") and line[7:].startswith(name))
        assert why in lines[place]
        assert lines[place + 1].startswith("       cure: ")
        assert cure in lines[place + 1]
    assert lines[-1].endswith(f"{list(found.values()).count('FAILED')} failed")


@pytest.mark.data
def test_local_benchmarks_are_counted(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kava.tools.smoke.data import local_data

    monkeypatch.setenv("KAVA_DATA_DIR", str(data_dir))
    assert local_data(Lab(tmp_path)) == f"{data_dir}: gsm8k 1319, gsm8k-hard 1319, svamp 1000 questions"


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_a_wrong_eviction_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kava.eviction.SCORERS, "rkv", crop)
    with pytest.raises(CheckFailedError, match=r"\d+ of 40 kept entries differ from the formulas"):
        method.eviction(lab)


@pytest.mark.parametrize("name", ["token_cross_entropy", "codi_loss", "kv_loss"])
def test_a_wrong_loss_is_found(name: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(method, name)
    monkeypatch.setattr(method, name, lambda *arguments: right(*arguments) * 1.001)
    with pytest.raises(CheckFailedError, match=r"against the formulas: off by 1.0e-03, allowed 1e-05"):
        method.losses(lab)


@pytest.mark.parametrize("name", ["token_cross_entropy", "codi_loss", "kv_loss"])
def test_a_loss_of_nan_is_found(name: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(method, name)
    monkeypatch.setattr(method, name, lambda *arguments: right(*arguments) * torch.nan)
    with pytest.raises(CheckFailedError, match="against the formulas: off by nan"):
        method.losses(lab)


@pytest.mark.parametrize("check", [method.padding, method.training_losses, attention_backends])
def test_a_term_of_nan_is_found(check: Callable[[Lab], str], lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    right, passes = KavaModel.losses, count()

    def second_is_nan(self: KavaModel, batch: Any) -> Any:
        terms = right(self, batch)
        return terms if next(passes) == first else {**terms, "kv": torch.nan * terms["kv"]}

    # The only pass of one check, the second one of the others.
    first = -1 if check is method.training_losses else 0
    monkeypatch.setattr(KavaModel, "losses", second_is_nan)
    with pytest.raises(CheckFailedError, match="off by nan"):
        check(lab)


def test_passes_that_mix_up_latents_are_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.batch  # noqa: B018 (the model is built and checked before its passes are wrong)
    right = Backbone.extend

    def mixed(self: Backbone, prefix: Any, embeds: Any, *others: Any, **options: Any) -> Any:
        return right(self, prefix, embeds.roll(1, 1), *others, **options)

    monkeypatch.setattr(Backbone, "extend", mixed)
    with pytest.raises(CheckFailedError, match="T = M = 4 against sequential latents: off by"):
        method.jacobi(lab)


def test_padding_that_leaks_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes that leave the mask out, as other implementations do for the latents."""
    right = Backbone._run

    def unmasked(self: Backbone, prefix: Any, embeds: Any, mask: Any, position_ids: Any, keep_hidden: bool = False) -> Any:
        return right(self, prefix, embeds, torch.ones_like(mask), position_ids, keep_hidden)

    monkeypatch.setattr(Backbone, "_run", unmasked)
    with pytest.raises(CheckFailedError, match="4 examples in a batch against alone: off by"):
        method.padding(lab)


def test_a_checkpoint_that_changes_a_weight_is_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    right = training.load_checkpoint

    def off(directory: Path) -> Any:
        trained = right(directory)
        with torch.no_grad():
            trained.model.projection.norm.bias.add_(1e-3)
        return trained

    monkeypatch.setattr(training, "load_checkpoint", off)
    with pytest.raises(CheckFailedError, match=r"\d+ of \d+ logits changed"):
        training.save_and_load(lab)


def test_checks_go_on_after_any_error(lab: Lab) -> None:
    missing = "ModuleNotFoundError: No module named 'kava.tools.smoke.no_such_module'"
    assert run_check(Check("absent", "no_such_module:x", "a cure"), lab) == ("FAILED", missing)
    assert run_check(Check("hub", "machine:hub_access"), lab)[0] == "info"
