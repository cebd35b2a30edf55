"""Packages of another torch and of another time end in a sentence before anything is imported."""

from pathlib import Path

import pytest

from kava import cli
from kava.errors import UserError
from kava.runtime import installed
from kava.runtime.installed import declared, foreign_packages, refuse_unusable_packages


def install(place: Path, name: str, version: str, *requires: str) -> None:
    """Metadata alone, as pip leaves it."""
    folder = place / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: >=3.10",
        *(f"Requires-Dist: {line}" for line in requires),
    ]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")


def test_what_is_installed_here_is_usable() -> None:
    refuse_unusable_packages()


def test_torchaudio_of_another_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The guide's torch 2.1 with its torchaudio, then our requirements: torch alone is new."""
    install(tmp_path, "torchaudio", "2.1.0", "torch==2.1.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "torchaudio 2.1.0 was built for torch 2.1.0, but torch" in str(foreign_packages())
    with pytest.raises(SystemExit) as stop:
        cli.main("train", ["--config", "mini"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith("kava uses neither: pip uninstall -y torchvision torchaudio\n")
    with pytest.raises(SystemExit) as stop:
        cli.main("model-configs", ["--list"])
    assert not stop.value.code


def test_torchvision_of_this_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = str(installed.version("torch")).partition("+")[0]
    install(tmp_path, "torchvision", "0.99.0", "numpy", f"torch=={torch}", 'torch==1.0; extra == "old"')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert foreign_packages() is None


def test_an_older_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "peft", "0.7.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"peft 0.7.0 is installed, but kava needs peft(<0.22,>=0.21|>=0.21,<0.22): pip install 'peft"):
        refuse_unusable_packages()


@pytest.mark.parametrize("project", ['[project]\nname = "host"\nrequires-python = ">=3.99"\ndependencies = ["torch==1.0"]\n', "[tool.x]\n"])
def test_the_file_of_a_project_around_it_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: str) -> None:
    (tmp_path / "pyproject.toml").write_text(project)
    monkeypatch.setattr(installed, "__file__", str(tmp_path / "vendored" / "kava" / "runtime" / "installed.py"))
    install(tmp_path / "vendored", "kava_latent", "9.0", "torch>=2")
    monkeypatch.syspath_prepend(str(tmp_path / "vendored"))
    assert declared()[1] == ["torch>=2"]
