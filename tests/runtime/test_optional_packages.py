"""A package that a setting needs and that is not there: one sentence with the command that installs it."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from kava.errors import UserError
from kava.runtime import optional_packages
from kava.runtime.optional_packages import EXTRAS, require
from kava.train.optimizer import check_optimizer

HAS_BNB = find_spec("bitsandbytes") is not None


@pytest.mark.skipif(HAS_BNB, reason="bitsandbytes is installed")
@pytest.mark.parametrize("optimizer", ["adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"])
def test_an_8_bit_optimizer_without_its_package_is_refused(optimizer: str) -> None:
    install = r"pip install 'kava-latent\[quant\]'"
    sentence = f"training.optimizer {optimizer} needs the package bitsandbytes, which is not installed: {install}, or set"
    with pytest.raises(UserError, match=sentence):
        check_optimizer(optimizer)


@pytest.mark.parametrize("package", EXTRAS)
def test_a_package_that_is_not_there_is_named_with_its_command(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional_packages, "find_spec", lambda module: None)
    with pytest.raises(UserError) as caught:
        require(package, "a setting", "leave it out")
    install = f"pip install 'kava-latent[{EXTRAS[package][1]}]'"
    assert str(caught.value) == f"a setting needs the package {package}, which is not installed: {install}, or leave it out"


@pytest.mark.parametrize("package", EXTRAS)
def test_a_package_that_is_there_is_accepted(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(optional_packages, "find_spec", lambda module: asked.append(module) or module)
    require(package, "a setting", "leave it out")
    assert asked == [EXTRAS[package][0]]


def test_the_extras_are_those_of_the_project() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for package, (_, extra) in EXTRAS.items():
        assert re.search(rf'^{extra} = \[.*"{package}[>"]', text, re.MULTILINE), package
