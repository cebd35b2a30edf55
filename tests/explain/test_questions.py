"""Questions that can be explained, and the trace that one without any gets."""

import pytest

from helpers.explaining import QUESTIONS, make
from kava.explain.questions import own_example, with_trace
from kava.generate import Reasoner


def test_a_question_without_trace_gets_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    reasoner = make()
    written = reasoner.generate(QUESTIONS[:1], max_new_tokens=4)[0]
    text = "<<1+2=3>>\n<<3+1=4>>\nThe answer is: 4"
    monkeypatch.setattr(Reasoner, "generate", lambda *_, **__: [type(written)(text, [], 1, 1, 1, True, answer="4")])
    traced = with_trace(reasoner, own_example(QUESTIONS[0], 1), 8)
    assert traced is not None
    assert (traced.steps, traced.answer) == (("<<1+2=3>>", "<<3+1=4>>"), "4")
    monkeypatch.setattr(Reasoner, "generate", lambda *_, **__: [type(written)("nothing", [], 1, 1, 1, True)])
    assert with_trace(reasoner, own_example(QUESTIONS[0], 1), 8) is None
