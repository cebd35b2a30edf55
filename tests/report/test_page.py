"""The report's page: what it leaves out because there is nothing to see in it, and names that two runs would share."""

import re
from pathlib import Path

from helpers.result_files import write_seed_dirs
from kava.explain.figures import figures
from kava.explain.record import Attention, Effect, Explanation, Interventions, Kept, QuestionView, StepResults
from kava.report.page import render_page
from kava.report.runs import Curve, Found, find_runs


def explanation(kept: list[list[list[int]]], share: list[float], held: float, changed: float) -> Explanation:
    view = QuestionView(
        question="How many ?", gold="4", prediction="4", correct=True, tokens=[[["4", "3"], ["+", "-"]]],
        probabilities=[[[0.9, 0.1], [0.6, 0.4]]], attention=Attention(latents=[[[0.1, 0.2]]], parts={"question": [0.7], "latents": [0.3]}),
        kept=Kept(tokens=["4", "+"], left_out=[], written_by="data set", eviction="rkv", positions=kept, share=share), similarity=None,
    )  # fmt: skip
    effect = Effect(
        latent=0, kind="zero", changed=changed, changed_ci95=[0.0, 0.4], accuracy=None, difference=None, difference_ci95=None,
        p_value=None, took_donor=None,
    )  # fmt: skip
    return Explanation(
        method="kava", num_latents=2, num_iterations=0, checkpoint="c", data=None, notes=["a note"], questions=[view],
        mean_similarity=None, intermediate=[StepResults(steps=2, questions=9, held=[[held, 0.1]], by_chance=[[0.2, 0.1]])],
        convergence=None, interventions=Interventions(questions=9, accuracy=None, effects=[effect]), provenance={},
    )  # fmt: skip


def captions(page: str) -> list[str]:
    return [caption.partition(".")[0] for caption in re.findall(r"<figcaption>([^<]*)", page)]


def test_a_figure_with_something_to_see_is_drawn() -> None:
    page = render_page(Found(explanations=[("kava", explanation([[[0]]], [1.0, 0.0], held=0.9, changed=0.2))]), "t")
    assert captions(page) == ["Attention", "Kept tokens", "Interventions", "Intermediate results"]
    assert "a note" in page
    assert "No disturbed latent" not in page


def test_solid_and_empty_figures_give_way_to_a_sentence() -> None:
    page = render_page(Found(explanations=[("kava", explanation([[[0, 1]]], [1.0, 1.0], held=0.2, changed=0.0))]), "t")
    assert captions(page) == ["Attention"]
    assert "Every layer and head kept every token of the trace." in page
    assert "No latent decodes to a step&#39;s result more often than by chance." in page
    assert "No disturbed latent changed an answer." in page
    assert "<mark" in page


def test_dollar_signs_are_no_mathematics(tmp_path: Path) -> None:
    """In the name of a folder, in a setting and in a token."""
    write_seed_dirs(tmp_path / "$", {"gsm8k": [700, 690]}, seeds=(1, 2))
    write_seed_dirs(tmp_path / r"$\folder$", {"gsm8k": [600]}, seeds=(1,))
    write_seed_dirs(tmp_path / "set", {"gsm8k": [500]}, seeds=(1,), overrides={"dataset.answer_prompt": r"It is $\setting$:"})
    item = explanation([[[0]]], [1.0, 0.0], held=0.9, changed=0.2)
    (view,) = item.questions
    assert view.kept is not None
    item.questions[0] = view.model_copy(update={"kept": view.kept.model_copy(update={"tokens": [r"$\token$", "$$"]})})
    found = find_runs(tmp_path)
    found.explanations.append(("kava", item))
    drawn = "".join(re.findall("<text[^>]*>([^<]*)</text>", render_page(found, "t")))
    assert all(rf"$\{word}$" in drawn for word in ("folder", "setting", "token"))
    for stem, figure in figures(item):
        figure.savefig(tmp_path / f"{stem}.png")


def test_a_run_without_a_course_has_a_sentence_in_place_of_its_losses() -> None:
    page = render_page(Found(curves=[Curve("kava", "seed_1", {"train/loss": [(0, 1.0)]})]), "t")
    assert captions(page) == []
    assert re.findall(r"<h2>([^<]+)", page) == ["Losses"]
    assert "Too little was logged for a curve." in page


def test_runs_that_share_a_name_are_told_apart_in_every_table(tmp_path: Path) -> None:
    for month, right in (("november", 700), ("december", 600)):
        write_seed_dirs(tmp_path / month / "kava", {"gsm8k": [right]}, seeds=(1,))
    page = render_page(find_runs(tmp_path), "t")
    ours = re.findall(r'<tr class="ours"><th scope="row">([^<]+)', page)
    assert sorted(set(ours)) == ["KaVa", "KaVa (november)", "december/kava", "november/kava"]
    assert "KaVa (november) is best: 70.0 % on GSM8k, 10.0 points above KaVa (60.0 %): the 95 % intervals do not overlap;" in page
