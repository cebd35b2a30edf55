"""Figures of the report: what there is to draw, who stands out, and names that stay whole."""

from kava.explain.record import StepResults
from kava.methods import METHODS
from kava.report.html_figures import METHOD_STYLES, Point, bars_figure, drawn_terms, loss_figure, passes_figure, styles_of
from kava.report.reference import load_reference
from kava.report.runs import Curve
from kava.report.svg import WIDE

LABELS = load_reference().labels.methods
FALLING = [(0, 2.0), (100, 1.0)]


def curve(**scalars: list[tuple[int, float]]) -> Curve:
    return Curve("run", "seed_1", {name.replace("__", "/"): points for name, points in scalars.items()})


def test_kava_stands_out_and_no_two_methods_look_alike() -> None:
    styles = styles_of(["KaVa", "KaVa, num_iterations = 1", "KaVa (december)"], LABELS)
    assert set(METHOD_STYLES) == set(METHODS)
    assert [label for label, style in styles.items() if style.strong] == ["KaVa"]
    assert len({(style.colour, style.marker) for style in styles.values()}) == len(styles) == len(METHODS) + 2
    strong, others = styles["KaVa"].drawn, [style.drawn for label, style in styles.items() if label != "KaVa"]
    assert all(strong["markersize"] > other["markersize"] and strong["linewidth"] > other["linewidth"] for other in others)
    assert all(strong["color"] != other["color"] for other in others)


def test_terms_without_a_course_are_not_drawn() -> None:
    flat = [(0, 0.0), (100, 0.0)]
    own = [curve(train__loss=FALLING, train__student_ce=[(0, 1.0), (100, 0.5)], train__kv=flat, eval__accuracy=[(100, 0.5)])]
    assert drawn_terms(own) == ["train/loss", "train/student_ce"]
    assert drawn_terms([curve(train__loss=FALLING, train__student_ce=FALLING)]) == ["train/student_ce"]
    assert drawn_terms([curve(train__loss=FALLING[:1])]) == []


def test_long_names_are_whole_and_inside_the_figure() -> None:
    long = "KaVa (a_long_directory_of_an_experiment/llama_3.2_1b_instruct_gsm8k_aug_{})"
    names = [long.format(month) for month in ("november", "december")]
    styles = styles_of(names, LABELS)
    points = [Point(name, styles[name], 6.9 + index, 50.0, (48.0, 52.0)) for index, name in enumerate(names)]
    figure = passes_figure(points, "GSM8k", 0.02)
    figure.draw_without_rendering()
    legend = figure.legends[0]
    assert [text.get_text().replace("\n", "").replace(" ", "") for text in legend.get_texts()][1:] == [
        name.replace(" ", "") for name in names
    ]
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= 0


def test_chance_is_a_dotted_line_and_the_centre_is_in_kavas_colour() -> None:
    styles = styles_of(["KaVa", "No CoT"], LABELS)
    points = [Point("KaVa", styles["KaVa"], 9.0, 90.0, None), Point("No CoT", styles["No CoT"], 2.0, 20.0, None)]
    axes = passes_figure(points, "test", 0.25).axes[0]
    dotted = [line for line in axes.get_lines() if line.get_linestyle() == ":"]
    assert [list(line.get_ydata()) for line in dotted] == [[25.0, 25.0]]
    bars = bars_figure([("KaVa", 90.0, (88.0, 92.0)), ("num_iterations = 1", 40.0, (38.0, 42.0))], "KaVa on test", 0.25).axes[0]
    assert [line.get_xdata()[0] for line in bars.get_lines() if line.get_linestyle() == ":"] == [25.0]
    first, second = (patch.get_facecolor() for patch in bars.patches)
    assert first != second


def test_the_losses_of_one_run_fit_a_phone_and_every_term_has_its_line() -> None:
    own = [curve(train__loss=FALLING, train__student_ce=[(0, 1.0), (100, 0.5)])]
    figure = loss_figure(own)
    assert figure.get_figwidth() * 96 <= WIDE
    assert [panel.get_title() for panel in figure.axes] == ["L, total", "CE student"]
    assert [list(panel.get_lines()[0].get_ydata()) for panel in figure.axes] == [[2.0, 1.0], [1.0, 0.5]]


def test_results_no_more_frequent_than_by_chance_are_nothing_to_draw() -> None:
    assert not StepResults(steps=2, questions=9, held=[[0.2, 0.1]], by_chance=[[0.2, 0.3]]).above_chance
    assert StepResults(steps=2, questions=9, held=[[0.2, 0.4]], by_chance=[[0.2, 0.3]]).above_chance
