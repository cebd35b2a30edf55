"""`kava report` on 18 runs: what the page holds, and how it behaves in a real browser."""

import io
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.browser import chromium, open_page
from helpers.report_material import CONFIGURATIONS, SEEDS, write_outputs
from kava.cli import main
from kava.report.group import variants
from kava.report.reference import load_reference
from kava.report.runs import find_runs
from kava.report.tables import label_of, relevant, result_tables
from kava.results import read_result
from kava.results.statistics import summarise

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_outputs(tmp_path_factory.mktemp("report") / "outputs")
    (root / "kava" / "seed_9").mkdir()
    (root / "kava" / "seed_9" / "results_gsm8k.yaml").write_text("format: kava.results/1\ndataset: gs")
    with pytest.raises(SystemExit) as stop:
        main("report", [str(root), "--title", "汇报 <b>& co</b>"])
    assert stop.value.code == 0
    return root


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


def url(outputs: Path) -> str:
    return (outputs / "report.html").as_uri()


def test_numbers_of_the_tables_are_those_of_the_files(outputs: Path) -> None:
    found, reference = find_runs(outputs), load_reference()
    assert len(found.groups) == len(CONFIGURATIONS)
    assert len(found.curves) == len(CONFIGURATIONS) * len(SEEDS)
    assert [problem for problem in found.problems if "seed_9" in problem] == found.problems
    labelled = [(group, label_of(group, changed, reference)) for group, changed in variants(found.groups)]
    labels = {group.path: label for group, label in labelled}
    assert labels["kava"] == "KaVa"
    assert labels["kava_T1"] == "KaVa, num_iterations = 1"
    assert labels["kava_no_proj"] == "KaVa, use_projection = false"
    table = result_tables(labelled, reference, relevant(labelled, reference))[0]
    row = next(row for row in table.rows if row[0].text == "KaVa" and row[-1].text.startswith("ours"))
    summary = summarise([read_result(outputs / "kava" / f"seed_{seed}" / "results_gsm8k.yaml").metrics.accuracy for seed in SEEDS])
    cell = row[table.columns.index("GSM8k")]
    assert summary.std is not None
    assert summary.ci95 is not None
    assert cell.text == f"{100 * summary.mean:.1f} ({100 * summary.std:.1f})"
    assert cell.remark == f"[{100 * summary.ci95[0]:.1f}, {100 * min(summary.ci95[1], 1):.1f}]"
    published = [row for index, row in enumerate(table.rows) if index in table.published]
    assert any("arXiv 2510.02312, Table 1" in row[-1].text and row[0].text == "KaVa" for row in published)
    assert {row[table.columns.index("Training data")].text for row in published} == {"GSM8k-AUG"}
    assert "Model: LLaMA-3.2-1B." in table.caption


def test_the_page_is_one_file_and_escapes_what_it_shows(outputs: Path) -> None:
    text = (outputs / "report.html").read_text(encoding="utf-8")
    assert "汇报 &lt;b&gt;&amp; co&lt;/b&gt;" in text
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?!data:|#)", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


@pytest.mark.browser
def test_every_figure_is_there_and_nothing_is_fetched(outputs: Path, browser: Any) -> None:
    page, complaints, addresses = open_page(browser, url(outputs))
    assert complaints == []
    assert [address for address in addresses if not address.startswith("data:")] == [url(outputs)]
    captions = page.locator("figcaption").all_text_contents()
    for wanted in (
        "Accuracy against forward passes: GSM8k", "Accuracy against forward passes: SVAMP", "Ablations: KaVa on GSM8k",
        "Number of steps: GSM8k", "Calibration: SVAMP",
        "Convergence", "Interventions", "Similarity of keys", "Similarity of values", "Attention",
        *(f"Losses: {name}" for name in CONFIGURATIONS),
    ):  # fmt: skip
        assert any(caption.startswith(wanted) for caption in captions), wanted
    drawn = page.evaluate("Array.from(document.querySelectorAll('figure svg')).map(s => s.querySelectorAll('path, image').length)")
    assert len(drawn) == len(captions)
    assert min(drawn) >= 5
    named = page.evaluate(
        "Array.from(document.querySelectorAll('figure svg')).every(s => s.getAttribute('aria-labelledby').split(' ')"
        ".every(id => document.getElementById(id).textContent.length > 3))"
    )
    assert named
    assert page.locator("mark").count() > 5
    assert page.locator("#accuracy tbody tr.ours").count() == 3
    assert page.locator("#ablations1 tbody tr").count() == len(CONFIGURATIONS) - 2
    assert page.locator(".likeliest").count() == page.locator(".readout").count() == 3


@pytest.mark.browser
def test_the_verdict_is_on_top_with_a_sentence_per_test_set(outputs: Path, browser: Any) -> None:
    page, _, _ = open_page(browser, url(outputs))
    first = page.locator("main > section").first
    assert first.locator("h2").inner_text() == "Verdict"
    assert re.match(
        r"[\w ]+ is best without a written chain on \w+( \w+)* test sets: [\d.]+ % on GSM8k, ", first.locator(".verdict p").inner_text()
    )
    sentences = first.locator("li").all_inner_texts()
    assert [sentence.partition(":")[0] for sentence in sentences] == ["GSM8k", "SVAMP"]
    for sentence in sentences:
        assert re.search(r"intervals (do not )?overlap; [\d.]+ forward passes a question instead of 65.0. Chance level 11.5 %.$", sentence)
    assert page.get_by_text("Chance level, always giving the most common answer: 11.5 % on GSM8k, 11.5 % on SVAMP.").count() == 1


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_capture_of_the_full_page_holds_every_figure(outputs: Path, browser: Any, width: int, scheme: str) -> None:
    page, _, _ = open_page(browser, url(outputs), viewport={"width": width, "height": 900}, color_scheme=scheme)
    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as shot:
        picture = shot.convert("RGB")
    boxes = page.locator("figure svg").evaluate_all(
        "all => all.map(s => s.getBoundingClientRect()).filter(b => b.width).map(b => [b.x, b.y, b.right, b.bottom])"
    )
    assert len(boxes) >= 12
    for left, top, right, bottom in boxes:
        part = picture.crop((int(left), int(top), min(int(right), width), int(bottom)))
        pixels = np.asarray(part)
        drawn = (pixels != pixels[-1, 0]).any(-1).mean()
        assert 0.005 < drawn < 0.95, (left, top)


@pytest.mark.browser
def test_it_opens_in_less_than_a_second(outputs: Path, browser: Any) -> None:
    page, _, _ = open_page(browser, "about:blank")
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def work() -> float:
        return next(item["value"] for item in session.send("Performance.getMetrics")["metrics"] if item["name"] == "ProcessTime")

    before = work()
    page.goto(url(outputs))
    # Seconds of the page's process: what else the machine does beside this test is not the page's doing.
    assert 0 < work() - before < 1


@pytest.mark.browser
def test_tables_sort_by_mouse_and_by_keyboard(outputs: Path, browser: Any) -> None:
    page, _, _ = open_page(browser, url(outputs))
    heading = page.locator("#accuracy th", has_text=re.compile("^GSM8k$"))
    column = heading.evaluate("th => th.cellIndex")

    def values() -> list[float]:
        cells = page.locator(f"#accuracy tbody td:nth-child({column + 1})").evaluate_all("tds => tds.map(td => td.dataset.sort)")
        return [float(cell) for cell in cells if cell is not None]

    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(values())
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)
    assert len(values()) > len(CONFIGURATIONS)


@pytest.mark.browser
def test_light_dark_phone_and_paper(outputs: Path, browser: Any) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('figure svg text')).fill"
    light, _, _ = open_page(browser, url(outputs), color_scheme="light")
    dark, _, _ = open_page(browser, url(outputs), color_scheme="dark")
    assert (light.evaluate(ground), dark.evaluate(ground)) == ("rgb(255, 255, 255)", "rgb(13, 17, 23)")
    assert (light.evaluate(ink), dark.evaluate(ink)) == ("rgb(27, 31, 36)", "rgb(230, 237, 243)")
    dark.get_by_role("button", name="Dark or light").click()
    assert dark.evaluate(ground) == "rgb(255, 255, 255)"
    phone, _, _ = open_page(browser, url(outputs), viewport={"width": 360, "height": 740}, has_touch=True)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360
    light.emulate_media(media="print")
    assert light.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert light.evaluate("getComputedStyle(document.querySelector('.settings')).display") == "none"
    assert len(light.pdf()) > 20_000


@pytest.mark.browser
def test_keyboard_and_screen_reader_find_their_way(outputs: Path, browser: Any) -> None:
    page, _, _ = open_page(browser, url(outputs))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    levels = page.locator("h1, h2, h3, h4").evaluate_all("hs => hs.map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.locator("table:not(:has(caption))").count() == 0
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("#accuracy tbody tr:not(:has(th[scope=row]))").count() == 0
    assert page.evaluate("document.documentElement.lang") == "en"


def test_an_empty_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for directory, words in ((tmp_path, "holds no results"), (tmp_path / "absent", "is not a directory")):
        with pytest.raises(SystemExit) as stop:
            main("report", [str(directory)])
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
