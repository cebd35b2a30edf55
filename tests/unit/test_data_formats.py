"""Every published format in every container, from files the test writes."""

import json
from pathlib import Path

import pytest

from kava.data.example import CotType, Example
from kava.data.sources.load import load_examples
from kava.data.sources.usable_rows import Loaded
from kava.errors import UserError

AUG = [
    {"question": "Q one?", "steps": ["<<600*30/100=180>>", "<<180+1=181>>"], "answer": "181"},
    {"question": "Q two?", "steps": [], "answer": "5,000"},
    {"question": "Q three?", "steps": ["<<1/2=0.5>>"], "answer": "0.5"},
]
AUG_NL = [
    {"question": "Q one?", "steps": ["30% of 600 is 600*30/100 = 180.", "Plus 1 is 181."], "answer": "181"},
    {"question": "Q two?", "steps": ["It is 5."], "answer": "5"},
]
GSM8K = [
    {"question": "Clips?", "answer": "She sold 48/2 = <<48/2=24>>24 in May.\n\nIn all 48+24 = <<48+24=72>>72.\n#### 72"},
    {"question": "Plain?", "answer": "No annotation here.\n#### 1,080"},
]
GSM_HARD = [
    {"input": "Ducks?", "code": "def solution(): ...", "target": -9867630.0},
    {"input": "Thirds?", "code": "", "target": 14053029.666666666},
    {"input": "Small?", "code": "", "target": 2.0107e-06},
]
SVAMP = [{"ID": "chal-1", "Body": "Each pack costs 76 dollars.", "Question": "How much?", "Equation": "( 76.0 - 25.0 )", "Answer": 51.0}]
SVAMP_HUB = [{"question_concat": "Each pack costs 76 dollars. How much?", "Equation": "( 76.0 - 25.0 )", "Answer": "51.0"}]


def write(path: Path, rows: list[dict], container: str) -> Path:
    """Write rows in a container, under a name that tells nothing about it."""
    if container == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    elif container == "json":
        path.write_text("\ufeff" + json.dumps(rows, indent=2), encoding="utf-8")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def load(path: Path, cot_type: CotType = "equation", split: str = "test", **options: object) -> Loaded:
    return load_examples(str(path), split, cot_type=cot_type, **options)


def contents(loaded: Loaded) -> list[tuple[str, tuple[str, ...], str]]:
    return [(example.question, example.steps, example.answer) for example in loaded.examples]


@pytest.mark.parametrize("container", ["jsonl", "json", "parquet"])
class TestContainers:
    def test_aug(self, tmp_path: Path, container: str) -> None:
        loaded = load(write(tmp_path / "rows.data", AUG, container))
        assert contents(loaded) == [
            ("Q one?", ("<<600*30/100=180>>", "<<180+1=181>>"), "181"),
            ("Q two?", (), "5000"),
            ("Q three?", ("<<1/2=0.5>>",), "0.5"),
        ]
        assert loaded.examples[2] == Example("Q three?", ("<<1/2=0.5>>",), "0.5", "rows/test/3")
        assert loaded.source == str((tmp_path / "rows.data").resolve())

    def test_aug_nl(self, tmp_path: Path, container: str) -> None:
        path = write(tmp_path / "rows", AUG_NL, container)
        assert load(path, "natural_language").examples[0].steps == ("30% of 600 is 600*30/100 = 180.", "Plus 1 is 181.")
        with pytest.raises(UserError, match="has natural_language steps, but dataset.cot_type is equation"):
            load(path, "equation")

    def test_gsm8k(self, tmp_path: Path, container: str) -> None:
        path = write(tmp_path / "rows", GSM8K, container)
        assert contents(load(path)) == [("Clips?", ("<<48/2=24>>", "<<48+24=72>>"), "72"), ("Plain?", (), "1080")]
        assert contents(load(path, "natural_language")) == [
            ("Clips?", ("She sold 48/2 = 24 in May.", "In all 48+24 = 72."), "72"),
            ("Plain?", ("No annotation here.",), "1080"),
        ]

    def test_gsm_hard(self, tmp_path: Path, container: str) -> None:
        loaded = load(write(tmp_path / "rows", GSM_HARD, container), "natural_language")
        assert contents(loaded) == [("Ducks?", (), "-9867630"), ("Thirds?", (), "14053029.666666666"), ("Small?", (), "0.0000020107")]

    @pytest.mark.parametrize("rows", [SVAMP, SVAMP_HUB])
    def test_svamp(self, tmp_path: Path, container: str, rows: list[dict]) -> None:
        assert contents(load(write(tmp_path / "rows", rows, container))) == [("Each pack costs 76 dollars. How much?", (), "51")]

    def test_the_container_does_not_change_the_fingerprint(self, tmp_path: Path, container: str) -> None:
        assert load(write(tmp_path / "rows", AUG, container)).fingerprint == "89e471109e3aad86"


def test_icot_text(tmp_path: Path) -> None:
    path = tmp_path / "valid.data"
    path.write_text("He cuts|it 2||<<4-2=2>> <<2/.5=4>> #### 300\nNo steps||#### 5,000\n", encoding="utf-8")
    assert contents(load(path)) == [("He cuts|it 2", ("<<4-2=2>>", "<<2/.5=4>>"), "300"), ("No steps", (), "5000")]
    with pytest.raises(UserError, match="has equation steps, but dataset.cot_type is natural_language"):
        load(path, "natural_language")


def test_a_line_separator_inside_a_question_is_no_line_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(AUG[0] | {"question": "One\u2028two\x0bthree?"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert load(path).examples[0].question == "One\u2028two\x0bthree?"


def test_training_rows_without_a_trace_are_left_out_and_counted(tmp_path: Path) -> None:
    gsm8k = write(tmp_path / "gsm8k", GSM8K, "jsonl")
    loaded = load(gsm8k, split="train")
    assert (len(loaded.examples), loaded.skipped_no_trace, loaded.bad_rows) == (1, 1, 0)
    assert load(gsm8k, "natural_language", "train").skipped_no_trace == 0
    assert [example.id for example in load(write(tmp_path / "aug", AUG, "jsonl"), split="train").examples] == ["aug/train/1", "aug/train/3"]
    assert len(load(write(tmp_path / "hard", GSM_HARD, "jsonl"), split="train").examples) == 3


BROKEN = {
    '{"question": "a", "answer": "<<1+1=2>>2"}': "no answer after '####'",
    '{"question": "a", "answer": "x\\n#### "}': "no answer after '####'",
    '{"question": "a", "answer": "x\\n#### many"}': "answer 'many' is not a number",
    '{"question": " ", "answer": "x\\n#### 2"}': "field 'question' is missing or no text",
    '{"answer": "x\\n#### 2"}': "field 'question' is missing or no text",
    '{"question": "a", "answer"': "not valid JSON",
    "[1, 2]": "a list instead of an object with fields",
}


@pytest.mark.parametrize(("line", "reason"), BROKEN.items())
def test_a_broken_row_is_named_or_counted(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "gsm8k_train.jsonl"
    path.write_text("\n".join([json.dumps(GSM8K[0]), "", line, json.dumps(GSM8K[1])]), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value).startswith(f"gsm8k_train.jsonl line 3: {reason}")
    assert str(caught.value).endswith("; mend the row, or set dataset.on_bad_row to skip")
    loaded = load(path, on_bad_row="skip")
    assert (len(loaded.examples), loaded.bad_rows) == (2, 1)
    assert [example.id for example in loaded.examples] == ["gsm8k_train/test/1", "gsm8k_train/test/3"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (AUG[0] | {"steps": "<<1+1=2>>"}, "field 'steps' is not a list of texts"),
        (AUG[0] | {"steps": [1]}, "field 'steps' is not a list of texts"),
        (AUG[0] | {"answer": None}, "answer None is not a number"),
        (AUG[0] | {"answer": float("nan")}, "answer nan is not a number"),
    ],
)
def test_a_broken_row_of_a_list(tmp_path: Path, row: dict, reason: str) -> None:
    path = write(tmp_path / "rows.json", [AUG[0], row], "json")
    with pytest.raises(UserError, match=f"rows.json row 2: {reason}"):
        load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"just a text\n", "is of no known format: the first row has text"),
        (b'{"a": 1, "b": 2}\n', "is of no known format: the first row has a, b"),
        (b"", "there is no readable row"),
        (b'[{"question": 1,', "is not valid JSON"),
        (b'[{"a": 1} {"a": 2}]', "is not valid JSON: Expecting ',' delimiter"),
        (b'[{"a": 1}, ]', "is not valid JSON: Expecting value"),
        (b'[{"a": 1}] more', "is not valid JSON: Extra data"),
        (b"[ ]", "there is no readable row"),
        (b"\xff\xfe\x00\x01", "cannot be read"),
        (b"PAR1 but not really parquet PAR1", "is not readable parquet"),
        (b'{"question": "a", "answer": "b"}\n', "no answer after"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(path)


def test_the_limit_counts_usable_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "rows", AUG, "jsonl")
    loaded = load(path, split="train", limit=2)
    assert [example.question for example in loaded.examples] == ["Q one?", "Q three?"]
    assert load(path, split="train", limit=1).fingerprint != loaded.fingerprint
