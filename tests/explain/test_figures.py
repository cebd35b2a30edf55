"""Tokens of any script in figures."""

import io
import warnings

import matplotlib as mpl
import pytest

from kava.explain import figures
from kava.explain.figures import any_text, kept_figure
from kava.explain.record import Kept
from kava.report.svg import inline_svg


def test_letters_that_no_font_has_give_no_warnings() -> None:
    tokens = ["中文", "ꙮ", "$", "\n"]
    kept = Kept(tokens=tokens, left_out=[], written_by="model", eviction="rkv", positions=[[[0, 1]]], share=[1.0, 1.0, 0.0, 0.0])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with any_text():
            kept_figure(kept).savefig(io.BytesIO(), format="png")
        inline_svg(lambda: kept_figure(kept), "kept", "Kept tokens", "")
    assert told == []


def test_installed_fonts_follow_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_CJK_FONTS", ("Nobody's Font", "DejaVu Serif"))
    usual = mpl.rcParams["font.family"]
    with any_text():
        assert mpl.rcParams["font.family"] == [*usual, "DejaVu Serif"]
    assert mpl.rcParams["font.family"] == usual
