"""Every published format in every container, from files the test writes.

The layouts of the sets that others report: a literal row or two of each, found by content, under its name.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.loading import load_examples, train_validation
from kava.config import build_config
from kava.data.example import CotType, Example
from kava.data.sources.benchmarks import BENCHMARKS
from kava.data.sources.formats import FORMATS, recognise
from kava.data.sources.load import load_benchmark
from kava.data.sources.stream import Loaded
from kava.errors import UserError
from kava.evaluate.questions import load_questions

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
    assert str(caught.value).endswith("; fix the row, or set dataset.on_bad_row to skip")
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


CHOICES = {"label": ["A", "B"], "text": ["bank", "desert"]}
# Benchmark, its layout, a row, and the question and answer that it gives.
LAYOUTS = [
    ("multiarith", "multiarith", {"question": "How many?", "final_ans": "7"}, "How many?", "7"),
    ("addsub", "mawps", {"iIndex": 0, "sQuestion": "How many?", "lEquations": ["X=3+4"], "lSolutions": [7.0]}, "How many?", "7"),
    ("singleeq", "mawps", {"sQuestion": "How much?", "lSolutions": [2.5]}, "How much?", "2.5"),
    ("addsub", "adapters", {"instruction": "How many?", "input": "", "output": "3+4", "answer": "7.0"}, "How many?", "7"),
    (
        "asdiv",
        "asdiv",
        {"body": "Tom has 9.", "question": "How many?", "answer": "9 (apples)", "formula": "9=9"},
        "Tom has 9. How many?",
        "9",
    ),
    ("gsm-plus", "gsm-plus", {"question": "Q?", "solution": "3+4=7", "answer": "7", "perturbation_type": "x"}, "Q?", "7"),
    ("gsm-symbolic", "gsm8k", {"id": 1, "instance": 2, "question": "Q?", "answer": "So <<3+4=7>>7.\n#### 7", "canary": ""}, "Q?", "7"),
    ("mgsm-zh", "mgsm", {"question": "几个？", "answer": None, "answer_number": 7, "equation_solution": None}, "几个？", "7"),
    ("math-500", "math", {"problem": "Half?", "solution": "...", "answer": "\\frac{1}{2}", "subject": "x", "level": 1}, "Half?", "0.5"),
    ("svamp-1000", "svamp", {"Body": "Tom has 9.", "Question": "How many?", "Answer": 9.0}, "Tom has 9. How many?", "9"),
    ("prosqa", "steps", {"question": "Is Tom a?", "steps": ["Tom is a."], "answer": "Tom is  a.", "root": 0}, "Is Tom a?", "Tom is a."),
    ("prontoqa", "steps", {"question": "True or false?", "steps": ["a"], "answer": "True"}, "True or false?", "True"),
    (
        "commonsenseqa",
        "choices",
        {"id": "1", "question": "Where?", "choices": CHOICES, "answerKey": "B"},
        "Where? Choices: A: bank B: desert",
        "B",
    ),
    ("commonsenseqa", "codi", {"question": "Where? Choices: A: x", "cot": "Guards.", "answer": "A"}, "Where? Choices: A: x", "A"),
    ("strategyqa", "bare", {"qid": "1", "question": "Can it?", "answer": True, "facts": "x"}, "Can it?", "yes"),
    ("strategyqa", "codi", {"question": "Can it?", "cot": "It can.", "answer": "No"}, "Can it?", "No"),
    ("gsm8k", "codi", {"question": "Q?", "cot": "<<3+4=7>>", "answer": "7"}, "Q?", "7"),
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "layout", "row", "question", "answer"), LAYOUTS)
def test_a_layout_is_found_by_its_fields_and_read(
    tmp_path: Path, name: str, layout: str, row: dict[str, Any], question: str, answer: str
) -> None:
    found = recognise([row])
    assert found is FORMATS[layout]
    loaded = load_benchmark(name, str(write_lines(tmp_path / "rows", [row, row])))
    assert [(item.question, item.answer, item.answer_type) for item in loaded.examples] == [
        (question, answer, BENCHMARKS[name].answer_type)
    ] * 2
    # In a directory the file is found by its layout, and by its name where other sets have rows of the same form.
    split = "" if name == "svamp-1000" else "_test"
    write_lines(tmp_path / "all" / f"{name.replace('-', '_')}{split}.jsonl", [row])
    write_lines(tmp_path / "all" / "other_test.jsonl", [{"question": "a", "steps": [], "answer": "Tom is a.", "x": 1}])
    assert Path(load_benchmark(name, str(tmp_path / "all")).source).stem.startswith(name.replace("-", "_"))


def test_a_language_of_mgsm_as_its_own_file_of_tabs(tmp_path: Path) -> None:
    (tmp_path / "mgsm_zh.tsv").write_text("几个？\t1,080\n多少？\t7\n", encoding="utf-8")
    (tmp_path / "mgsm_de.tsv").write_text("Wie viele?\t8\n", encoding="utf-8")
    assert [item.answer for item in load_benchmark("mgsm-zh", str(tmp_path)).examples] == ["1080", "7"]
    assert load_benchmark("mgsm-de", str(tmp_path)).examples[0].question == "Wie viele?"


def test_svamp_as_1000_joins_train_and_test(tmp_path: Path) -> None:
    rows = [{"Body": f"b {n}", "Question": "q", "Answer": n} for n in range(1000)]
    for split, part in (("train", rows[:700]), ("test", rows[700:])):
        (tmp_path / f"{split}.json").write_text(json.dumps(part), encoding="utf-8")
    joined = load_benchmark("svamp-1000", str(tmp_path))
    assert (len(joined.examples), joined.note) == (1000, "all 1,000 problems of SVAMP")
    assert [example.question for example in joined.examples[699:701]] == ["b 699 q", "b 700 q"]
    part = load_benchmark("svamp", str(tmp_path))
    assert (len(part.examples), part.note) == (300, "the test part of SVAMP, 300 problems")

    import datasets

    saved = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows[:700]), "test": datasets.Dataset.from_list(rows[700:])})
    saved.save_to_disk(str(tmp_path / "saved"))
    assert load_benchmark("svamp-1000", str(tmp_path / "saved")).fingerprint == joined.fingerprint


@pytest.mark.parametrize(
    ("name", "row", "no_number"),
    [
        ("math-500", {"problem": "p", "solution": "s"}, "\\left( 3, \\frac{\\pi}{2} \\right)"),
        ("gsm-plus", {"question": "q", "solution": "s", "perturbation_type": "critical thinking"}, "None"),
        ("asdiv", {"body": "b", "question": "q"}, "3:5 (ratio)"),
        ("asdiv", {"body": "b", "question": "q"}, "8 (ft); 128 (sq. ft)"),
    ],
)
def test_the_numeric_part_of_a_set_is_taken_and_said(tmp_path: Path, name: str, row: dict[str, Any], no_number: str) -> None:
    path = write_lines(tmp_path / "rows", [row | {"answer": answer} for answer in (no_number, "4", no_number, "1,080")])
    loaded = load_benchmark(name, str(path))
    assert ([item.answer for item in loaded.examples], loaded.bad_rows) == (["4", "1080"], 0)
    assert loaded.note == "2 rows left out that are answered by no number"


def test_codi_gives_both_kinds_of_steps(tmp_path: Path) -> None:
    equations = [{"question": f"q {n}?", "cot": "<<3+4=7>> <<7+1=8>>", "answer": "8"} for n in range(20)]
    sentences = [{"question": f"q {n}?", "cot": "He has 3.5 and 4. So it is 7.5.", "answer": "7.5"} for n in range(20)]
    train, _ = train_validation(str(write_lines(tmp_path / "a.jsonl", equations)), cot_type="equation")
    assert train.examples[0].steps == ("<<3+4=7>>", "<<7+1=8>>")
    train, _ = train_validation(str(write_lines(tmp_path / "b.jsonl", sentences)), cot_type="natural_language")
    assert train.examples[0].steps == ("He has 3.5 and 4.", "So it is 7.5.")
    with pytest.raises(UserError, match="has natural_language steps, but dataset.cot_type is equation"):
        train_validation(str(tmp_path / "b.jsonl"), cot_type="equation")


def test_plain_number_answers_are_read(tmp_path: Path) -> None:
    answers = ["4.33", 5, 2.5, "$1,080", "-3"]
    path = write_lines(tmp_path / "rows", [{"question": "q", "answer": answer} for answer in answers])
    assert [item.answer for item in load_examples(str(path), "test", cot_type="equation").examples] == ["4.33", "5", "2.5", "1080", "-3"]


def test_rows_that_all_fail_alike_are_of_an_unknown_layout(tmp_path: Path) -> None:
    unknown = write_lines(tmp_path / "rows.jsonl", [{"question": "q", "answer": "it is many"}] * 3)
    with pytest.raises(UserError) as caught:
        load_examples(str(unknown), "test", cot_type="equation")
    message = str(caught.value)
    assert (
        "none of its first 3 rows can be read as gsm8k (fields question, answer (ends in '#### answer')); the first: no answer after '####'"
        in message
    )
    assert all(f"{form.name}: {form.description}" in message for form in FORMATS.values())
    assert "fix the row" not in message


@pytest.mark.parametrize(("answer", "cure"), [("B", "choice"), ("Tom is a bear.", "text")])
def test_answers_of_another_type_are_named_with_a_cure_that_works(tmp_path: Path, answer: str, cure: str) -> None:
    rows = [{"question": f"q {n}", "steps": ["a", "b"], "answer": answer} for n in range(20)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=f"Set dataset.answer_type to {cure} to read them"):
        train_validation(str(path), cot_type="natural_language")
    train, validation = train_validation(str(path), cot_type="natural_language", answer_type=cure)
    assert {example.answer_type for example in (*train.examples, *validation.examples)} == {cure}
    assert train.examples[0].answer == answer


def test_the_names_lead_to_the_hub_or_to_a_file(tmp_path: Path) -> None:
    config = build_config({}, "test")
    assert list(config.evaluation.datasets) == ["gsm8k", "gsm8k-hard", "svamp"]
    assert all(benchmark.hub == config.evaluation.datasets.get(name, benchmark.hub) for name, benchmark in BENCHMARKS.items())
    with pytest.raises(
        UserError, match="'addsub' is not on the hub: give its place, --data_dir DIRECTORY or --evaluation.datasets.addsub FILE"
    ):
        load_questions(config, "addsub", None)
    path = write_lines(tmp_path / "AddSub.jsonl", [LAYOUTS[1][2]])
    assert load_questions(config, "addsub", str(tmp_path)).examples[0].answer == "7"
    other = build_config({"evaluation": {"datasets": {"addsub": str(path)}}}, "test")
    assert load_questions(other, "addsub", None).examples[0].answer == "7"


def test_answers_of_another_type_than_the_models_are_refused_with_a_cure_that_works(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "commonsense_qa.jsonl", [LAYOUTS[12][2]])
    with pytest.raises(UserError, match="are of type choice, but the model was trained to give a number; set --dataset.answer_type choice"):
        load_questions(build_config({}, "test"), "commonsenseqa", str(tmp_path))
    choice = build_config({}, "test", {"dataset.answer_type": "choice"})
    assert load_questions(choice, "commonsenseqa", str(tmp_path)).examples[0].answer == "B"
    assert path.exists()
