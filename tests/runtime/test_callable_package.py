"""Packages that are functions too."""

import pytest

import kava
from kava import api
from kava.runtime.callable_package import CallablePackage


def test_a_call_goes_to_the_function_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "evaluate", lambda *arguments, **options: (arguments, options), raising=True)
    assert CallablePackage("kava.evaluate")("a", limit=3) == (("a",), {"limit": 3})


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_the_api_s_packages_can_be_called(name: str) -> None:
    assert isinstance(getattr(kava, name), CallablePackage)
