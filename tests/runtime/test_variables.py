"""Numbers in environment variables."""

import pytest

from kava.errors import UserError
from kava.runtime.variables import number


@pytest.mark.parametrize(("text", "expected"), [(None, 30.0), ("", 30.0), ("0", 0.0), ("2.5", 2.5), ("inf", float("inf"))])
def test_a_number_or_its_default(text: str | None, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAVA_TEST", raising=False)
    if text is not None:
        monkeypatch.setenv("KAVA_TEST", text)
    assert number("KAVA_TEST", 30.0, "seconds") == expected


@pytest.mark.parametrize("text", ["-1", "nan", "soon", "1,5"])
def test_what_is_no_number_of_at_least_zero_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAVA_TEST", text)
    with pytest.raises(UserError, match=f"^KAVA_TEST is '{text}'; set it to a number of seconds, or leave it out for 30$"):
        number("KAVA_TEST", 30.0, "seconds")
