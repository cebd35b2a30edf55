"""The layouts of the sets that others report: a literal row or two of each, found by content, under its name."""

import json
from pathlib import Path
from typing import Any

import pytest

from kava.config import build_config
from kava.data.sources.benchmarks import BENCHMARKS
from kava.data.sources.formats import FORMATS, recognise
from kava.data.sources.load import load_benchmark, load_examples, train_validation
from kava.errors import UserError
from kava.evaluate.evaluate import load_questions

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


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "layout", "row", "question", "answer"), LAYOUTS)
def test_a_layout_is_found_by_its_fields_and_read(
    tmp_path: Path, name: str, layout: str, row: dict[str, Any], question: str, answer: str
) -> None:
    found = recognise([row])
    assert found is FORMATS[layout]
    loaded = load_benchmark(name, str(write(tmp_path / "rows", [row, row])))
    assert [(item.question, item.answer, item.answer_type) for item in loaded.examples] == [
        (question, answer, BENCHMARKS[name].answer_type)
    ] * 2
    # In a directory the file is found by its layout, and by its name where other sets have rows of the same form.
    split = "" if name == "svamp-1000" else "_test"
    write(tmp_path / "all" / f"{name.replace('-', '_')}{split}.jsonl", [row])
    write(tmp_path / "all" / "other_test.jsonl", [{"question": "a", "steps": [], "answer": "Tom is a.", "x": 1}])
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
    ],
)
def test_the_numeric_part_of_a_set_is_taken_and_said(tmp_path: Path, name: str, row: dict[str, Any], no_number: str) -> None:
    path = write(tmp_path / "rows", [row | {"answer": answer} for answer in (no_number, "4", no_number, "1,080")])
    loaded = load_benchmark(name, str(path))
    assert ([item.answer for item in loaded.examples], loaded.bad_rows) == (["4", "1080"], 0)
    assert loaded.note == "2 rows left out that are answered by no number"


def test_codi_gives_both_kinds_of_steps(tmp_path: Path) -> None:
    equations = [{"question": f"q {n}?", "cot": "<<3+4=7>> <<7+1=8>>", "answer": "8"} for n in range(20)]
    sentences = [{"question": f"q {n}?", "cot": "He has 3.5 and 4. So it is 7.5.", "answer": "7.5"} for n in range(20)]
    train, _ = train_validation(str(write(tmp_path / "a.jsonl", equations)), cot_type="equation")
    assert train.examples[0].steps == ("<<3+4=7>>", "<<7+1=8>>")
    train, _ = train_validation(str(write(tmp_path / "b.jsonl", sentences)), cot_type="natural_language")
    assert train.examples[0].steps == ("He has 3.5 and 4.", "So it is 7.5.")
    with pytest.raises(UserError, match="has natural_language steps, but dataset.cot_type is equation"):
        train_validation(str(tmp_path / "b.jsonl"), cot_type="equation")


def test_plain_number_answers_are_read(tmp_path: Path) -> None:
    answers = ["4.33", 5, 2.5, "$1,080", "-3"]
    path = write(tmp_path / "rows", [{"question": "q", "answer": answer} for answer in answers])
    assert [item.answer for item in load_examples(str(path), "test", cot_type="equation").examples] == ["4.33", "5", "2.5", "1080", "-3"]


def test_rows_that_all_fail_alike_are_of_an_unknown_layout(tmp_path: Path) -> None:
    unknown = write(tmp_path / "rows.jsonl", [{"question": "q", "answer": "it is many"}] * 3)
    with pytest.raises(UserError) as caught:
        load_examples(str(unknown), "test", cot_type="equation")
    message = str(caught.value)
    assert (
        "none of its first 3 rows can be read as gsm8k (fields question, answer (ends in '#### answer')); the first: no answer after '####'"
        in message
    )
    assert all(f"{form.name}: {form.description}" in message for form in FORMATS.values())
    assert "mend the row" not in message


@pytest.mark.parametrize(("answer", "cure"), [("B", "choice"), ("Tom is a bear.", "text")])
def test_answers_of_another_type_are_named_with_a_cure_that_works(tmp_path: Path, answer: str, cure: str) -> None:
    rows = [{"question": f"q {n}", "steps": ["a", "b"], "answer": answer} for n in range(20)]
    path = write(tmp_path / "rows.jsonl", rows)
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
    path = write(tmp_path / "AddSub.jsonl", [LAYOUTS[1][2]])
    assert load_questions(config, "addsub", str(tmp_path)).examples[0].answer == "7"
    other = build_config({"evaluation": {"datasets": {"addsub": str(path)}}}, "test")
    assert load_questions(other, "addsub", None).examples[0].answer == "7"


def test_answers_of_another_type_than_the_models_are_refused_with_a_cure_that_works(tmp_path: Path) -> None:
    path = write(tmp_path / "commonsense_qa.jsonl", [LAYOUTS[12][2]])
    with pytest.raises(UserError, match="are of type choice, but the model was trained to give a number; set --dataset.answer_type choice"):
        load_questions(build_config({}, "test"), "commonsenseqa", str(tmp_path))
    choice = build_config({}, "test", {"dataset.answer_type": "choice"})
    assert load_questions(choice, "commonsenseqa", str(tmp_path)).examples[0].answer == "B"
    assert path.exists()
