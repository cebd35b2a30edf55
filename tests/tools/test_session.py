"""Batch inference: as many rows come out as went in, whatever the file of questions looks like."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny import mini_builder, mini_examples, mini_model
from kava.commands.inference import Inference
from kava.errors import UserError
from kava.generate import Reasoner
from kava.tools.session import answer_file, read_questions

QUESTIONS = [example.question for example in mini_examples(2)]
BOM = "\ufeff"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", BOM])
def test_every_line_of_a_text_is_a_question(tmp_path: Path, mark: str, newline: str) -> None:
    path = tmp_path / "questions.txt"
    path.write_bytes((mark + newline.join([QUESTIONS[0], "", "One\u2028two\x0bthree?", QUESTIONS[1]]) + newline).encode())
    assert read_questions(str(path)) == [QUESTIONS[0], "", "One\u2028two\x0bthree?", QUESTIONS[1]]


@pytest.mark.parametrize("mark", ["", BOM])
def test_rows_of_any_data_file_are_questions(tmp_path: Path, mark: str) -> None:
    rows = [{"question": question, "answer": "1"} for question in QUESTIONS]
    lines, listed = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_text(mark + "\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    listed.write_text(mark + json.dumps(rows), encoding="utf-8")
    assert read_questions(str(lines)) == [QUESTIONS[0], "", QUESTIONS[1]]
    assert read_questions(str(listed)) == QUESTIONS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "a"}\n{"answer": "b"}\n', "line 2: not a JSON object with a 'question'"),
        ('{"question": "a"}\n{"question": 1}\n', "line 2: not a JSON object with a 'question'"),
        ('{"question": "a"}\nplain\n', "line 2: not a JSON object with a 'question'; give all lines the same form"),
        ('plain\n{"question": "a"}\n', "line 2: not a JSON object with a 'question'; give all lines the same form"),
        ("caf\udce9", "cannot be read"),
    ],
)
def test_what_is_no_question_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "questions"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        read_questions(str(path))


def test_rows_out_are_rows_in(tmp_path: Path) -> None:
    reasoner = Reasoner(mini_model("llama", "kava"), mini_builder("<never>"), 2, 1)
    output = tmp_path / "answers.jsonl"
    asked = [QUESTIONS[0], "", QUESTIONS[1], "  "]
    answer_file(reasoner, asked, str(output), batch_size=2, max_new_tokens=3, temperature=0.0, use_latent=True)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [row["question"] for row in rows] == asked
    assert [row["forward_passes"] > 0 for row in rows] == [True, False, True, False]
    assert rows[1]["answer"] is None
    with pytest.raises(UserError, match="there is no question"):
        answer_file(reasoner, ["", " "], None, batch_size=2, max_new_tokens=3, temperature=0.0, use_latent=True)


def test_settings_of_the_evaluation_count_where_no_option_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}
    generate = Reasoner.generate
    monkeypatch.setattr(Reasoner, "generate", lambda *given, **options: asked.update(options) or generate(*given, **options))
    settings = {"batch_size": 1, "temperature": 0.5, "max_new_tokens": 2, "use_latent": False}
    monkeypatch.setattr(Inference, "overrides", {f"evaluation.{name}": value for name, value in settings.items()})
    given = {"checkpoint": "builtin:mini", "mode": "batch", "questions": (QUESTIONS[0],), "output_file": str(tmp_path / "answers.jsonl")}
    Inference(**given).run()  # type: ignore[arg-type]
    assert asked == settings
    Inference(**given, temperature=0.0, max_new_tokens=3).run()  # type: ignore[arg-type]
    assert asked == settings | {"temperature": 0.0, "max_new_tokens": 3}
