"""The playground: its answers against the generator's, and the page in a real browser, eight users at once included."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

pytest.importorskip("gradio")

from helpers.browser import chromium, open_page
from helpers.tiny import MINI, lora_config, mini_examples, mini_model, mini_tokenizer
from kava.checkpoint import Trained
from kava.cli import main
from kava.data.answers import answers_equal, extract_answer
from kava.errors import UserError
from kava.tools.playground.page import note_html, serve
from kava.tools.playground.player import Player

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

LATENTS, ITERATIONS, TOKENS, LIMIT = 4, 2, 12, 60
EXAMPLES = list(mini_examples(8))


def make_trained(method: str = "kava") -> Trained:
    config = lora_config(
        **{
            "method": method, "latent.num_tokens": LATENTS, "latent.num_iterations": ITERATIONS, "dataset.max_length": LIMIT,
            "evaluation.max_new_tokens": TOKENS, "dataset.mini": MINI.model_dump(),
        }
    )  # fmt: skip
    return Trained(mini_model(method=method, spread=0.3), mini_tokenizer(), config, "a test")


@pytest.fixture(scope="module")
def player() -> Player:
    return Player(make_trained(), EXAMPLES)


@pytest.mark.parametrize("use_latent", [True, False])
def test_a_streamed_answer_is_the_generated_one(player: Player, use_latent: bool) -> None:
    for example in EXAMPLES[:3]:
        expected = player.reasoner(LATENTS, ITERATIONS).generate([example.question], max_new_tokens=TOKENS, use_latent=use_latent)[0]
        steps = list(player.ask(example.question, LATENTS, ITERATIONS, use_latent=use_latent))
        assert (steps[-1].text, steps[-1].forward_passes, steps[-1].done) == (expected.text, expected.forward_passes, True)
        assert [step.done for step in steps[:-1]] == [False] * len(expected.token_ids)
        assert [step.forward_passes for step in steps] == sorted(step.forward_passes for step in steps)


def test_a_question_that_it_cannot_know_is_called_a_guess(player: Player) -> None:
    assert note_html(player.why_unknowable(EXAMPLES[0].question)) == ""
    note = note_html(player.why_unknowable("<b> eats 3 zebras ?"))
    assert note == (
        '<p class="kava-note" role="note"><strong>A guess:</strong> this model has no words for &#x27;&lt;&#x27;, &#x27;b&#x27;, '
        "&#x27;&gt;&#x27;, &#x27;eats&#x27; and 1 more.</p>"
    )


def test_a_measurement_counts_answers(player: Player) -> None:
    found = player.measure(6, 1)
    questions = [example.question for example in EXAMPLES]

    def predictions(*setting: int, use_latent: bool = True) -> list[str | None]:
        generations = player.reasoner(*setting).generate(questions, max_new_tokens=TOKENS, use_latent=use_latent)
        return [extract_answer(item.text, "The answer is:", behind_prompt=use_latent) for item in generations]

    own = predictions(6, 1)
    right = sum(answers_equal(a, e.answer) for a, e in zip(own, EXAMPLES, strict=True))
    same = sum(a == b for a, b in zip(own, predictions(LATENTS, ITERATIONS), strict=True))
    written = sum(a == b for a, b in zip(own, predictions(LATENTS, ITERATIONS, use_latent=False), strict=True))
    assert (found.accuracy, found.same_as_trained, found.same_as_written) == (right / 8, same / 8, written / 8)
    assert player.measure(LATENTS, ITERATIONS).same_as_trained == 1.0
    assert player.measure(6, 1) is found


@pytest.mark.parametrize(("setting", "words"), [((9999, 2), "M = 9999"), ((0, 2), "M = 0"), ((LATENTS, -1), "T = -1")])
def test_a_setting_out_of_reach_is_one_sentence(player: Player, setting: tuple[int, int], words: str) -> None:
    """The page's sliders end there; whoever calls its interface may send anything."""
    with pytest.raises(UserError, match=rf"{words} is out of reach: the playground takes \d to \d+"):
        list(player.ask("How many ?", *setting))
    with pytest.raises(UserError, match=words):
        player.measure(*setting)


def test_what_cannot_be_played_with_is_refused() -> None:
    with pytest.raises(UserError, match="no_cot has no latents"):
        Player(make_trained("no_cot"), [])


@pytest.fixture(scope="module")
def served(player: Player) -> Iterator[str]:
    url, app = serve(player, block=False)
    yield url
    app.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


def ask(page: Any, question: str) -> None:
    page.locator("#question textarea").fill(question)
    page.locator("#ask").click()


def value(page: Any, name: str) -> str:
    return str(page.locator(f"#{name} textarea, #{name} input").first.input_value())


def wait_for_cost(page: Any) -> None:
    page.wait_for_function("() => /ms$/.test(document.querySelector('#written-cost textarea, #written-cost input').value)", timeout=60_000)


def expected_answers(player: Player, question: str, *setting: int) -> tuple[str, str]:
    latent, written = (list(player.ask(question, *setting, use_latent=use_latent))[-1].text for use_latent in (True, False))
    return latent, written


def test_the_page_is_for_this_machine_alone(served: str) -> None:
    """Bound to the loopback address: at every other address of this machine nobody answers."""
    host, port = urlsplit(served).hostname, urlsplit(served).port
    assert host == "127.0.0.1"
    with socket.create_connection((host, port), timeout=10):
        pass
    addresses = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries if entry.family == socket.AF_INET]
    for address in addresses:
        if not address.startswith("127."):
            with pytest.raises(OSError):
                socket.create_connection((address, port), timeout=10)


@pytest.mark.browser
def test_ask_see_and_change_t(served: str, player: Player, browser: Any) -> None:
    page, complaints, addresses = open_page(browser, served)
    question = EXAMPLES[0].question
    ask(page, question)
    wait_for_cost(page)
    assert (value(page, "latent"), value(page, "written")) == expected_answers(player, question, LATENTS, ITERATIONS)
    assert re.fullmatch(r"\d+ forward passes, \d+ ms", value(page, "latent-cost"))
    assert page.locator("#trace tr").count() == 1 + 1 + ITERATIONS
    assert page.locator("#measured td").first.inner_text() == str(LATENTS)
    number = page.locator("#iterations input[type=number]")
    number.fill("1")
    number.press("Tab")
    page.wait_for_function("() => document.querySelectorAll('#measured tr').length === 3")
    cells = page.locator("#measured tr").nth(1).locator("td").all_inner_texts()
    found = player.measure(LATENTS, 1)
    assert cells[:3] == [str(LATENTS), "1", f"{100 * found.accuracy:.1f}"]
    assert cells[4] == f"{100 * found.same_as_trained:.1f}"
    ask(page, question)
    page.wait_for_function("() => document.querySelectorAll('#trace tr').length === 3")
    wait_for_cost(page)
    assert value(page, "latent") == expected_answers(player, question, LATENTS, 1)[0]
    assert complaints == []
    assert all(address.startswith((served, "data:", "blob:")) for address in addresses), addresses


@pytest.mark.browser
@pytest.mark.parametrize(("question", "words"), [("  ", "the question is empty"), ("Tom has 3 apples . " * 20, "at most 60")])
def test_bad_input_is_said_on_the_page(served: str, browser: Any, question: str, words: str) -> None:
    page, _, _ = open_page(browser, served)
    ask(page, question)
    page.get_by_text(words).first.wait_for(timeout=20_000)
    assert value(page, "latent") == ""


@pytest.mark.browser
def test_eight_users_at_once_get_their_own_answers(served: str, player: Player, browser: Any) -> None:
    questions = [example.question for example in EXAMPLES]
    expected = [expected_answers(player, question, LATENTS, ITERATIONS) for question in questions]
    assert len(set(expected)) >= 6
    pages = [open_page(browser, served)[0] for _ in questions]
    for page, question in zip(pages, questions, strict=True):
        ask(page, question)
    for page, answers in zip(pages, expected, strict=True):
        wait_for_cost(page)
        assert (value(page, "latent"), value(page, "written")) == answers


def test_a_taken_port_is_named(served: str, player: Player) -> None:
    port = int(re.findall(r":(\d+)", served)[0])
    with pytest.raises(UserError, match=f"port {port}"):
        serve(player, port, block=False)


def test_the_command_refuses_what_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main("play", [str(tmp_path)])
    assert stop.value.code == 2
    assert "is not a checkpoint" in capsys.readouterr().err
