"""The playground: its answers against the generator's, and the page in a real browser, eight users at once included."""

import importlib.util
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import torch

from helpers.browser import chromium, open_page
from helpers.tiny import MINI, lora_config, mini_examples, mini_model, mini_tokenizer
from kava.checkpoint import Trained
from kava.cli import main
from kava.data.answers import answers_equal, extract_answer
from kava.data.example import Example
from kava.data.mini.problems import EXAMPLE
from kava.errors import UserError
from kava.explain.questions import Solution, solution
from kava.explain.readout import Readout
from kava.generate import Reasoner
from kava.tools.playground.markup import answers_html, grid_html, note_html
from kava.tools.playground.page import serve
from kava.tools.playground.player import Measured, Player, Progress

# Not imported to find out: that takes two seconds of every test process.
HAS_GRADIO = importlib.util.find_spec("gradio") is not None
pytestmark = [
    pytest.mark.skipif(not HAS_GRADIO, reason="gradio is not installed"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

LATENTS, ITERATIONS, TOKENS, LIMIT = 4, 2, 12, 60
EXAMPLES = list(mini_examples(8))


def make_trained(method: str = "kava", **overrides: Any) -> Trained:
    config = lora_config(
        **{
            "method": method, "latent.num_tokens": LATENTS, "latent.num_iterations": ITERATIONS, "dataset.max_length": LIMIT,
            "evaluation.max_new_tokens": TOKENS, "dataset.mini": MINI.model_dump(),
            **overrides,
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


class InterruptedLock:
    """A lock that lets another visitor in as soon as it is released for the first time."""

    def __init__(self, interruption: Callable[[], object]) -> None:
        self.lock, self.interruption = threading.Lock(), interruption

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()
        interruption, self.interruption = self.interruption, lambda: None
        interruption()


def test_a_question_asked_while_another_is_answered_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CUDA graphs the logits of every question of a length lie in one buffer; here too, without a GPU."""
    plain, shared = Reasoner.start, torch.empty(1, len(mini_tokenizer()))

    def start(*arguments: Any) -> tuple[Any, torch.Tensor, int]:
        prefix, logits, passes = plain(*arguments)
        return prefix, shared.copy_(logits), passes

    monkeypatch.setattr(Reasoner, "start", start)
    player = Player(make_trained(), EXAMPLES)
    first, second = (example.question for example in EXAMPLES[:2])
    expected = list(player.ask(first, LATENTS, ITERATIONS))[-1].text
    assert list(player.ask(second, LATENTS, ITERATIONS))[-1].text != expected
    player._model = InterruptedLock(lambda: list(player.ask(second, LATENTS, ITERATIONS)))  # type: ignore[assignment]
    assert list(player.ask(first, LATENTS, ITERATIONS))[-1].text == expected


def test_a_question_that_it_cannot_know_is_called_a_guess(player: Player) -> None:
    assert note_html(player.guess_reason(EXAMPLES[0].question)) == ""
    note = note_html(player.guess_reason("<b> eats 3 zebras ?"))
    assert note == (
        '<p class="kava-note" role="note"><strong>A guess:</strong> this model has no words for &#x27;&lt;&#x27;, &#x27;b&#x27;, '
        "&#x27;&gt;&#x27;, &#x27;eats&#x27; and 1 more.</p>"
    )


def test_a_built_in_question_has_its_gold_answer_and_right_or_wrong(player: Player) -> None:
    gold = player.solution(EXAMPLE)
    assert gold is not None
    assert (gold.answer, gold.results) == ("2", ("0", "1", "2"))
    assert gold.steps == ("4 + 1 = 5, a box and 0", "0 - 4: open a box, 5 + 0 - 4 = 1", "1 * 2 = 2")
    steps = [Progress("", "<<4+1=0>>", answer, 9, 0.0123, True) for answer in ("2", "3")]
    shown = answers_html(player, *steps, gold, None)
    assert re.findall(r'class="kava-mark (\w+)"', shown) == ["right", "wrong"]
    assert re.findall(r"<dd>(\d+)</dd>", shown) == ["9", "12"] * 2
    assert "&lt;&lt;4+1=0&gt;&gt;" in shown
    assert player.solution("What is 2 + 2 ?") is None
    assert "kava-mark" not in answers_html(player, *steps, None, None)


def test_a_question_of_the_sample_has_the_gold_answer_of_its_data_set() -> None:
    config = lora_config(**{"dataset.name": "gsm8k"})
    example = Example("How many clips ?", ("<<48/2=24>>", "<<48+24=72>>"), "72", "gsm8k/test/1")
    found = solution(config, " How many  clips ?", [example])
    assert found == Solution("72", "number", ("48/2=24", "48+24=72"), ("24", "72"))
    assert [found.agrees(answer) for answer in ("72.0", "7", None)] == [True, False, False]


def test_steps_results_are_marked_where_they_appear(player: Player) -> None:
    readout = Readout(EXAMPLE, [[["0"], ["+"]], [["1"], ["2"]]], [[[0.25], [0.5]], [[0.75], [1.0]]])
    marks = player.marks(readout, player.solution(EXAMPLE))
    assert marks == [[[1], []], [[2], [3]]]
    shown = grid_html(readout, marks)
    assert re.findall(r"<td( class=\"result\")?[^>]*><span>(.)</span>(?:<sup>(\d)</sup>)?", shown) == [
        (' class="result"', "0", "1"), ("", "+", ""), (' class="result"', "1", "2"), (' class="result"', "2", "3"),
    ]  # fmt: skip
    assert player.marks(readout, None) == [[[], []], [[], []]]
    assert "ring" not in grid_html(readout, player.marks(readout, None))


@pytest.mark.browser
def test_a_method_without_iterations_has_no_slider_and_no_rows_for_them(browser: Any) -> None:
    codi = Player(make_trained("codi"), EXAMPLES)
    url, app = serve(codi, block=False)
    page, complaints, _ = open_page(browser, url)
    wait_for_answers(page)
    assert page.locator("#latents").is_visible()
    assert not page.locator("#iterations").is_visible()
    assert page.locator("#grid tr").count() == 2
    assert page.locator("#grid th").all_inner_texts() == ["latent", *map(str, range(LATENTS)), "token"]
    page.locator('#map td[data-m="2"]').click()
    page.locator(".answers.stale").wait_for()
    ask(page, EXAMPLE)
    wait_for_answers(page)
    assert page.locator("#grid td").count() == 2
    assert page.locator("#map h2").inner_text() == "Accuracy over M"
    assert complaints == []
    app.close()


def test_only_a_model_taught_short_chains_is_said_to_end_early(player: Player) -> None:
    progress = Progress("2", "<<4+1=0>>", "2", 9, 0.01, True)
    assert "without the last step" in answers_html(player, progress, progress, None, None)
    whole = Player(make_trained(**{"dataset.drop_last_step": False}), EXAMPLES)
    assert "without the last step" not in answers_html(whole, progress, progress, None, None)


def test_two_visitors_get_their_own_answers_and_costs(player: Player) -> None:
    """Token by token in turns, and from two threads, with the map measured beside them."""
    alone = {example.question: list(player.ask(example.question, LATENTS, ITERATIONS))[-1] for example in EXAMPLES}
    own = Player(player.trained, EXAMPLES)

    def outcome(progress: Progress) -> tuple[object, ...]:
        return progress.text, progress.answer, progress.forward_passes

    with ThreadPoolExecutor(5) as pool:
        measured = pool.submit(own.measure, LATENTS, ITERATIONS)
        asked = [(q, pool.submit(lambda q=q: list(own.ask(q, LATENTS, ITERATIONS))[-1])) for q in alone for _ in range(3)]
        for question, future in asked:
            assert outcome(future.result()) == outcome(alone[question])
        assert measured.result() == Player(player.trained, EXAMPLES).measure(LATENTS, ITERATIONS)


def test_the_map_lies_around_the_trained_setting_and_starts_there(player: Player) -> None:
    own = Player(player.trained, EXAMPLES)
    assert own.axes() == ([1, 2, 3, 4, 6, 8], [0, 1, 2, 3, 4])
    first = next(own.measure_all())
    assert (first.num_latents, first.num_iterations) == (LATENTS, ITERATIONS)
    own.measure(5, 2)
    assert 5 in own.axes()[0]
    answers = [example.answer for example in EXAMPLES]
    assert own.chance == max(map(answers.count, answers)) / len(answers)
    assert Player(make_trained("codi"), EXAMPLES).axes()[1] == [ITERATIONS]


def test_the_map_waits_for_answers_that_are_being_written(player: Player) -> None:
    own = Player(player.trained, EXAMPLES)
    answer = own.ask(EXAMPLES[0].question, LATENTS, ITERATIONS, use_latent=False)
    next(answer)
    measured: list[Measured] = []
    filling = threading.Thread(target=lambda: measured.append(next(own.measure_all())))
    filling.start()
    filling.join(0.3)
    assert measured == []
    answer.close()
    filling.join(60)
    assert len(measured) == 1


def test_a_measurement_counts_answers(player: Player) -> None:
    found = player.measure(6, 1)
    questions = [example.question for example in EXAMPLES]

    def predictions(*setting: int, use_latent: bool = True) -> list[str | None]:
        generations = player.reasoner(*setting).generate(questions, max_new_tokens=TOKENS, use_latent=use_latent)
        return [extract_answer(item.text, "The answer is:", after_prompt=use_latent) for item in generations]

    own = predictions(6, 1)
    right = sum(answers_equal(a, e.answer) for a, e in zip(own, EXAMPLES, strict=True))
    same = sum(a == b for a, b in zip(own, predictions(LATENTS, ITERATIONS), strict=True))
    written = sum(a == b for a, b in zip(own, predictions(LATENTS, ITERATIONS, use_latent=False), strict=True))
    assert (found.accuracy, found.same_as_configured, found.same_as_written) == (right / 8, same / 8, written / 8)
    assert player.measure(LATENTS, ITERATIONS).same_as_configured == 1.0
    assert player.measure(6, 1) is found


def test_answers_are_the_same_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Player(make_trained(), EXAMPLES[:2])
    written = {(1, 1): ["18.0", None], own.configured_setting: ["18", "3"], None: ["18", None]}
    monkeypatch.setattr(own, "_answers", lambda setting: (1.0, written[setting]))
    found = own.measure(1, 1)
    assert (found.same_as_configured, found.same_as_written) == (0.5, 1.0)


@pytest.mark.parametrize(("setting", "words"), [((9999, 2), "M = 9999"), ((0, 2), "M = 0"), ((LATENTS, -1), "T = -1")])
def test_a_setting_out_of_reach_is_one_sentence(player: Player, setting: tuple[int, int], words: str) -> None:
    """The page's sliders end there; whoever calls its interface may send anything."""
    with pytest.raises(UserError, match=rf"{words} is out of range: the playground accepts \d to \d+"):
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


CARD = {"latent": 0, "written": 1, "gold": 2}


def value(page: Any, name: str) -> str:
    """A card's answer, without right or wrong."""
    return str(page.locator(".kava-card").nth(CARD[name]).locator(".kava-answer").evaluate("p => p.firstChild.textContent.trim()"))


def wait_for_answers(page: Any) -> None:
    page.locator('.fresh [data-done="true"]').wait_for(timeout=60_000)


def set_slider(page: Any, name: str, value: int) -> None:
    number = page.locator(f"#{name} input[type=number]")
    number.fill(str(value))
    number.press("Tab")


def expected_answers(player: Player, question: str, *setting: int) -> tuple[str, str]:
    latent, written = (list(player.ask(question, *setting, use_latent=use_latent))[-1].answer for use_latent in (True, False))
    return latent or "no answer", written or "no answer"


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
    wait_for_answers(page)
    assert page.locator("#question textarea").input_value() == EXAMPLE
    assert value(page, "gold") == "2"
    question = EXAMPLES[0].question
    ask(page, question)
    wait_for_answers(page)
    assert (value(page, "latent"), value(page, "written")) == expected_answers(player, question, LATENTS, ITERATIONS)
    right = [answers_equal(value(page, name), EXAMPLES[0].answer) for name in ("latent", "written")]
    assert page.locator(".kava-mark").all_inner_texts() == [("wrong", "right")[mark] for mark in right]
    costs = [[int(text) for text in page.locator(".kava-cost").nth(card).locator("dd").all_inner_texts()] for card in (0, 1)]
    passes = [list(player.ask(question, LATENTS, ITERATIONS, use_latent=use_latent))[-1].forward_passes for use_latent in (True, False)]
    assert [cost[0] for cost in costs] == passes
    assert "without the last step" in page.locator(".kava-card").nth(1).inner_text()
    assert page.locator("#grid tr").count() == 1 + 1 + ITERATIONS
    set_slider(page, "iterations", 1)
    page.locator(".answers.stale").wait_for()
    assert not page.locator(".kava-card, #grid table").first.is_visible()
    ask(page, question)
    wait_for_answers(page)
    assert page.locator("#grid tr").count() == 3
    assert value(page, "latent") == expected_answers(player, question, LATENTS, 1)[0]
    assert complaints == []
    assert all(address.startswith((served, "data:", "blob:")) for address in addresses), addresses


@pytest.mark.browser
def test_a_late_answer_to_another_question_is_not_shown(served: str, browser: Any) -> None:
    page, _, _ = open_page(browser, served)
    wait_for_answers(page)
    page.get_by_text(EXAMPLES[0].question[:30]).first.click()
    page.locator("#question textarea").fill("Something else ?")
    page.wait_for_timeout(1500)
    # A slow click on an example fills the box after us; what is seen belongs to what stands there in any case.
    box = page.locator("#question textarea").input_value()
    seen = page.locator(".kava-shown.fresh").evaluate_all("shown => shown.map(one => one.dataset.asked)")
    assert all(asked.endswith(f" {box}") for asked in seen), (box, seen)
    assert page.locator(".kava-card").first.is_visible() == bool(seen)


@pytest.mark.browser
def test_the_map_fills_tells_and_sets_the_sliders(served: str, player: Player, browser: Any) -> None:
    page, _, _ = open_page(browser, served)
    wait_for_answers(page)
    several, iterations = player.axes()
    page.wait_for_function(
        "() => { const c = [...document.querySelectorAll('#map td')]; return c.length && c.every(x => x.textContent !== '·') }"
    )
    assert page.locator("#map td").count() == len(several) * len(iterations)
    found = player.measure(1, 1)
    cell = page.locator('#map td[data-m="1"][data-t="1"]')
    assert cell.inner_text() == f"{100 * found.accuracy:.0f}"
    cell.hover()
    assert page.locator("#map .kava-tip").inner_text().startswith(f"M = 1, T = 1: {100 * found.accuracy:.1f} % right")
    trained = page.locator("#map td.trained")
    assert trained.get_attribute("class") == "trained current"
    trained.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.locator(f'#map td.current[data-t="{ITERATIONS - 1}"]').wait_for()
    assert [page.locator(f"#{name} input[type=number]").input_value() for name in ("latents", "iterations")] == ["4", "1"]
    page.wait_for_function("() => document.activeElement.dataset.t === '1'")
    assert not page.locator(".kava-card").first.is_visible()


@pytest.mark.browser
def test_the_grid_tells_probabilities_to_mouse_keyboard_and_finger(served: str, player: Player, browser: Any) -> None:
    readout = player.trace(EXAMPLE, LATENTS, ITERATIONS)
    page, _, _ = open_page(browser, served, viewport={"width": 390, "height": 844}, has_touch=True, color_scheme="dark")
    wait_for_answers(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    tip, cells = page.locator("#grid .kava-tip"), page.locator("#grid td")

    def told(iteration: int, latent: int) -> str:
        row = zip(readout.tokens[iteration][latent], readout.probabilities[iteration][latent], strict=True)
        place = f"latent {latent}, {f'iteration {iteration}' if iteration else 'prefill'}"
        return f"{place}: " + ", ".join(f"'{token}' {100 * chance:.0f} %" for token, chance in row)

    cells.nth(1).tap()
    assert tip.inner_text().startswith(told(0, 1))
    cells.nth(0).focus()
    page.keyboard.press("ArrowDown")
    assert tip.inner_text().startswith(told(1, 0))
    page.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith(told(1, 1))
    cells.nth(0).hover()
    assert tip.inner_text().startswith(told(0, 0))
    ground, ink = (page.evaluate(f"getComputedStyle(document.body).{what}") for what in ("backgroundColor", "color"))
    assert max(map(int, re.findall(r"\d+", ground)[:3])) < 60 < 190 < min(map(int, re.findall(r"\d+", ink)[:3]))


@pytest.mark.browser
@pytest.mark.parametrize(("question", "words"), [("  ", "the question is empty"), ("Tom has 3 apples . " * 20, "at most 60")])
def test_bad_input_is_said_on_the_page(served: str, browser: Any, question: str, words: str) -> None:
    page, _, _ = open_page(browser, served)
    ask(page, question)
    page.locator(".fresh [role=alert]", has_text=words).wait_for(timeout=20_000)
    assert page.locator(".kava-card, #grid table").count() == 0


@pytest.mark.browser
def test_eight_users_at_once_get_their_own_answers(served: str, player: Player, browser: Any) -> None:
    questions = [example.question for example in EXAMPLES]
    expected = [expected_answers(player, question, LATENTS, ITERATIONS) for question in questions]
    assert len(set(expected)) >= 6
    pages = [open_page(browser, served)[0] for _ in questions]
    for page, question in zip(pages, questions, strict=True):
        ask(page, question)
    for page, answers in zip(pages, expected, strict=True):
        wait_for_answers(page)
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
