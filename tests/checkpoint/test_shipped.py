"""The trained model of the package, and every question that we print with it: right with today's code."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from helpers.scripts import load_script
from kava.api import Model
from kava.checkpoint import KAVA_CONFIG, Trained, load_checkpoint
from kava.checkpoint.shipped import SHIPPED
from kava.cli import main
from kava.data.mini.problems import EXAMPLE, generate
from kava.data.mini.recognise import read_question
from kava.evaluate.accuracy import evaluate_accuracy
from kava.generate import Reasoner

ROOT = Path(__file__).parents[2]
NAME = "builtin:mini"
_PLAIN = r"[^?{}\"'`|#;:]"
QUESTION = re.compile(rf"(?:Every|At first|[A-Z][a-z]+ (?:packs|starts|has))\b{_PLAIN}*?\bbox(?:es)?\b{_PLAIN}*\?")


@pytest.fixture(scope="module")
def trained() -> Trained:
    return load_checkpoint(NAME)


@pytest.fixture(scope="module")
def reasoner(trained: Trained) -> Reasoner:
    return trained.reasoner()


def printed_questions() -> dict[str, list[str]]:
    """Every built-in problem that a document, a docstring, a card or the notebook shows, with where."""
    listed = subprocess.run(["git", "ls-files", "*.md", "*.py", "*.j2", "*.ipynb"], cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = {}
    for name in listed.stdout.splitlines():
        if name.startswith("tests/") or not (ROOT / name).is_file():
            continue
        text = " ".join((ROOT / name).read_text(encoding="utf-8").replace('\\"', '"').split()).replace('" "', "")
        for question in QUESTION.findall(text):
            found.setdefault(question, []).append(name)
    return found


def test_every_printed_question_is_answered_rightly(reasoner: Reasoner) -> None:
    printed = printed_questions()
    assert EXAMPLE in printed
    assert len(printed[EXAMPLE]) >= 5
    answers = reasoner.generate(list(printed), max_new_tokens=64)
    for (question, places), answer in zip(printed.items(), answers, strict=True):
        chain = read_question(question, 5)
        assert chain, f"{places}: not a built-in problem: {question}"
        assert answer.answer == str(chain.values(5)[-1]), f"{places}: {question}"


def test_the_picture_of_the_latents_shows_what_they_say_today(trained: Trained) -> None:
    script = load_script("draw_latents")
    drawn = (ROOT / "docs/pictures/latents.svg").read_text(encoding="utf-8")
    said = {
        name: re.findall(r">([^<]+)</text>", svg) for name, svg in (("stored", drawn), ("now", script.picture(Model(trained), EXAMPLE)))
    }
    assert said["now"] == said["stored"], "python scripts/draw_latents.py docs/pictures/latents.svg"
    assert {"4+1=0", "0-4=1"} <= set(said["now"])


def test_no_document_asks_in_the_former_words() -> None:
    """Their counting was modulo 5 without saying so; one page quotes them to say what changed."""
    places = ["--", ":!tests", ":!docs/results", ":!docs/mini.md", ":!CHANGELOG.md"]
    command = ["git", "grep", "-lE", r"How many \w+ does \w+ have( now)? \?", *places]
    assert not subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def test_it_answers_as_well_as_its_record_says(trained: Trained, reasoner: Reasoner) -> None:
    config, said = trained.config, trained.metadata["validation"]["eval_accuracy"]
    examples = generate("validation", config.dataset.mini, limit=config.evaluation.validation_samples)
    found = evaluate_accuracy(reasoner, examples, batch_size=100, max_new_tokens=16)
    assert said > 0.9
    assert found.accuracy == pytest.approx(said, abs=0.01)


def test_it_is_small_and_says_how_it_was_made(trained: Trained) -> None:
    directory = SHIPPED[NAME]
    assert sum(path.stat().st_size for path in directory.iterdir()) < 1_000_000
    made = json.loads((directory / KAVA_CONFIG).read_text())
    assert made["base"] == made["config"]["model"]["name"] == NAME
    command = made["provenance"]["command_line"]
    assert command.startswith("train.py --config configs/mini.yaml")
    card = (directory / "README.md").read_text()
    assert command in card
    for path in directory.glob("*.json"):
        assert not re.search(r"/(tmp|home|root|work)/", path.read_text()), path
    assert trained.config.dataset.mini.modulus == 5


def test_loaded_by_name_it_is_the_same(reasoner: Reasoner) -> None:
    assert Model.from_pretrained(NAME).answer([EXAMPLE]) == reasoner.generate([EXAMPLE], max_new_tokens=64)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    with pytest.raises(SystemExit) as end:
        main(None, list(arguments))
    assert end.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_try_shows_latents_and_chain_on_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "try")
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert re.search(r"^in latents +2 +right +9 passes, \d+ ms$", text, re.M)
    assert re.search(r"^in words +2 +right +20 passes, \d+ ms +wrote <<4\+1=0>> <<0-4=1>>", text, re.M)
    assert "by hand 2 4 + 1 = 5, a box and 0; 0 - 4: open a box, 5 + 0 - 4 = 1; 1 * 2 = 2" in " ".join(text.split())
    # The first step's result stands where the chain has it.
    (last,) = [line for line in lines if line.startswith("pass 6")]
    assert last.split()[2:7] == ["4", "+", "1", "=", "0"]


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("2+2", "this is no question of the built-in kind"),
        ("汤姆有 3 个苹果 , 又找到 4 个 , 现在有几个 ?", "this model has no words for '汤姆有', '个苹果', '又找到', '个' and 1 more"),
        ("Natalia sold clips to 48 of her friends .", "this model has no words for 'Natalia', 'sold', 'clips', '48' and 2 more"),
        (EXAMPLE.replace("Tom packs", "Bob packs"), "this model has no words for 'Bob'"),
        (
            EXAMPLE.replace("He finds 1 more . Then he gives 4 apples to a friend . ", ""),
            "this has 1 step; this model was trained on questions with 2 to 3",
        ),
    ],
    ids=["sum", "Chinese", "GSM8K", "name", "one step"],
)
def test_a_question_that_it_cannot_know_is_called_a_guess(capsys: pytest.CaptureFixture[str], question: str, reason: str) -> None:
    said = " ".join(" ".join(run(capsys, "try", question)).split())
    assert f"a guess: {reason}" in said
    (line,) = run(capsys, "inference", "--checkpoint", NAME, "--mode", "batch", "--questions", question)
    assert json.loads(line)["guess"].startswith(reason)


def test_a_question_of_its_kind_is_no_guess(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = run(capsys, "inference", "--checkpoint", NAME, "--mode", "batch", "--questions", EXAMPLE)
    assert json.loads(line)["answer"] == "2"
    assert "guess" not in json.loads(line)
