"""LaTeX and CSV tables: the guide's row, the reference rows with their source, and text that cannot break either format."""

import csv
import io
import re

import pytest

from helpers.result_files import make_result
from kava.report.aggregate import SeedResults, combine
from kava.report.aggregate_file import Aggregate
from kava.report.group import Group
from kava.report.latex import escape, render_latex
from kava.report.reference import load_reference
from kava.report.table import as_csv, number
from kava.report.tables import interval_of, numbers_table


def latex(*aggregates, **options):
    return render_latex([Group(aggregate.model_name, aggregate) for aggregate in aggregates], load_reference(), **options)


def guide_aggregate(model_name=None, seeds=(42, 123, 456), datasets=("gsm8k", "gsm8k-hard", "svamp")):
    correct = {"gsm8k": (561, 569, 565), "gsm8k-hard": (336, 348, 342), "svamp": (478, 488, 483), "mine": (1, 2, 3)}
    return combine(
        [
            SeedResults(
                f"run{seed}", {name: make_result(seed, name, correct[name][index], 1000, passes=6.8 + index / 10) for name in datasets}
            )
            for index, seed in enumerate(seeds)
        ],
        model_name,
    )


def test_table_1_has_the_guides_header_and_row():
    text = latex(guide_aggregate())
    assert r"Model & Dataset & GSM8k & GSM8k-Hard & SVAMP & Method & Source \\" in text
    assert r"LLaMA-3.2-1B & GSM8k-AUG & 56.5 (0.4) & 34.2 (0.6) & 48.3 (0.5) & KaVa & [1] \\" in text
    assert r"\raggedright [1] ours: llama1b\_aug, 3 seeds; [2] arXiv 2510.02312, Table 1; [3] " in text


def test_the_caption_promises_what_is_printed():
    text = latex(guide_aggregate())
    assert "mean (standard deviation over seeds)" in text
    assert "interval" not in text.partition(r"\\begin{tabular}")[0].partition("caption")[2].partition("}")[0]


def test_letters_that_t1_lacks_are_written_otherwise():
    assert escape("Mô hình tư duy ħŀ") == "Mô hình tu duy ?l"
    assert not set("ĦħĸŉŦŧſƀư") & set(escape("ĦħĸŉŦŧſƀư"))


def test_reference_rows_stand_beside_ours_with_their_source():
    lines = latex(guide_aggregate()).splitlines()
    ours = next(number for number, line in enumerate(lines) if line.endswith(r"[1] \\"))
    (legend,) = (line for line in lines if "[1] ours" in line and "[5]" in line)
    legend, _, note = legend.removesuffix("}").partition(r" \textsuperscript{\textdagger} ")
    assert note == "no second source gives this figure."
    sources = dict(part.split("] ") for part in legend.partition("[")[2].split("; ["))
    group = lines[ours + 1 : lines.index(r"\midrule", ours)]
    assert r"LLaMA-3.2-1B & GSM8k-AUG & 53.4 & -- & -- & PCCoT & [2] \\" in group
    assert r"LLaMA-3.2-1B & GSM8k-AUG & 56.5 (0.4) & -- & -- & KaVa & [2] \\" in group
    dagger = r"\textsuperscript{\textdagger}"
    assert rf"LLaMA-3.2-1B & GSM8k-AUG & 56.5 (0.4) & 34.2 (0.6){dagger} & 48.3 (0.5){dagger} & KaVa & [5] \\" in group
    assert r"LLaMA-3.2-1B & GSM8k-AUG & 52.2 & -- & -- & KaVa & [3] \\" in group
    assert sources == {
        "1": r"ours: llama1b\_aug, 3 seeds",
        "2": "arXiv 2510.02312, Table 1",
        "3": "arXiv 2510.02312, ablation without projection",
        "4": r"arXiv 2510.02312, ablation without L\_CODI",
        "5": "reproduction guide, table preview",
    }
    assert all("GSM8k-AUG-NL" not in line for line in group)
    assert any("GSM8k-AUG-NL & 55.7" in line for line in lines)


def test_runs_of_one_method_are_told_apart_by_their_source():
    overrides = ({}, {"latent.num_tokens": 6}, {"training.logging_steps": 8}, {"evaluation.use_latent": False})
    aggregates = [combine([SeedResults("run", {"gsm8k": make_result(correct=500, total=1000, overrides=own)})]) for own in overrides]
    groups = [Group(path, aggregate) for path, aggregate in zip(("main", "six", "old/main", "written"), aggregates, strict=True)]
    text = render_latex(groups, load_reference())
    assert re.findall(r"LLaMA-3.2-1B & GSM8k-AUG & 50.0 & -- & -- & (.*) & \[(\d)\]", text) == [
        ("KaVa", str(number)) for number in range(1, 5)
    ]
    for source in ("[1] ours: main, seed 42;", r"[2] ours: six, seed 42 (num\_tokens = 6);", "[3] ours: old/main, seed 42 (old);"):
        assert source in text
    # One written evaluation alone is not KaVa either.
    assert r"[1] ours: written, seed 42 (use\_latent = false)" in render_latex(groups[-1:], load_reference())


def test_table_2_holds_passes_tokens_and_seconds():
    text = latex(guide_aggregate())
    table = text[text.index("tab:kava-efficiency") :]
    assert r"LLaMA-3.2-1B & GSM8k-AUG & SVAMP & 6.9 (0.1) & 3.5 (0.0) & 250.0 (0.0) & 1.0 & KaVa & [1] \\" in table
    assert r"GSM8k & 65.0 & -- & -- & -- & Full CoT & [2] \\" in table
    assert "[2] arXiv 2510.02312, Table 2; [3] reproduction guide" in table
    assert r"28.3 (0.8)\textsuperscript{\textdagger}" in table


def test_one_seed_shows_no_deviation_and_other_sets_get_a_column():
    text = latex(guide_aggregate(seeds=(42,), datasets=("gsm8k", "mine")))
    assert r"SVAMP & mine & Method" in text
    assert r"& 56.1 & -- & -- & 0.1 & KaVa & [1] \\" in text
    assert text.count(r"[1] ours: llama1b\_aug, seed 42;") == 2
    assert text.count(r"\begin{tabular}{@{}llccccll@{}}") == 1


def test_numbers():
    assert number(56.46, 0.44) == "56.5 (0.4)"
    assert number(56.46) == "56.5"
    assert number(None) == "--"


def test_tables_are_for_input_and_documents_stand_alone():
    tables = latex(guide_aggregate())
    document = latex(guide_aggregate(), standalone=True)
    assert tables.startswith("% Written by kava")
    assert r"\documentclass" not in tables
    assert document.startswith(r"\documentclass")
    assert document.rstrip().endswith(r"\end{document}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"a_b & 5% of $x #1 {y} ~^\z", r"a\_b \& 5\% of \$x \#1 \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{}z"),
        ("é ü ß", "é ü ß"),
        ("中文模型", "????"),
        ("tab\there\x00\x1b", "tab here"),
        ("①", "1"),
    ],
)
def test_escaping(text, expected):
    assert escape(text) == expected


def test_csv_has_a_row_per_configuration_and_data_set():
    text = as_csv(numbers_table([("outputs/aggregated_results.yaml", "llama1b_aug", guide_aggregate("=HYPERLINK(1)"))]))
    assert text.startswith("\ufeff")
    rows = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"))))
    assert [row["dataset"] for row in rows] == ["gsm8k", "gsm8k-hard", "svamp"]
    first = rows[0]
    assert float(first["accuracy_mean"]) == pytest.approx(0.565)
    assert float(first["accuracy_std"]) == pytest.approx(0.004)
    assert (first["num_seeds"], first["seeds"], first["questions"], first["config"]) == ("3", "42 123 456", "1000", "llama1b_aug")
    assert first["model_name"] == "'=HYPERLINK(1)"  # a spreadsheet must not run it
    alone = list(csv.DictReader(io.StringIO(as_csv(numbers_table([("f", "c", guide_aggregate(seeds=(42,)))])).removeprefix("\ufeff"))))
    assert (alone[0]["accuracy_std"], alone[0]["accuracy_ci95_low"]) == ("", "")


def test_parts_of_a_test_set_are_marked_in_latex_and_csv():
    part = combine([SeedResults("run", {"gsm8k": make_result(correct=4, total=20, overrides={"evaluation.max_samples": 20})})])
    text = latex(part)
    assert r"LLaMA-3.2-1B & GSM8k-AUG & 20.0\textsuperscript{\textdaggerdbl} & -- & -- & KaVa" in text
    assert r"\textsuperscript{\textdaggerdbl} not a full evaluation: first 20 questions." in text
    (row,) = csv.DictReader(io.StringIO(as_csv(numbers_table([("f", "c", part)])).removeprefix("\ufeff")))
    assert row["partial"] == "first 20 questions"


def test_an_interval_in_csv_stays_within_0_and_1():
    content = guide_aggregate(datasets=("gsm8k",)).model_dump()
    content["datasets"]["gsm8k"]["accuracy_ci95"] = [-0.1, 1.2]
    old = Aggregate.model_validate(content)
    assert interval_of(old.datasets["gsm8k"]) == (0, 100)
    (row,) = csv.DictReader(io.StringIO(as_csv(numbers_table([("f", "c", old)])).removeprefix("\ufeff")))
    assert (float(row["accuracy_ci95_low"]), float(row["accuracy_ci95_high"])) == (0, 1)


def test_more_test_sets_than_a_page_is_wide_go_into_a_table_of_their_own():
    mini = {"model.name": "builtin:mini", "dataset.name": "builtin:mini"}
    names = ("test", "larger", "rephrased", "reworded")
    other = combine([SeedResults("run", {name: make_result(42, name, 900, 1000, overrides=mini) for name in names})])
    text = latex(guide_aggregate(), other)
    first, second = text[: text.index("tab:kava-efficiency")].split("tab:kava-accuracy-2")
    assert r"GSM8k & GSM8k-Hard & SVAMP & test & Method" in first
    assert r"larger & rephrased & reworded & Method" in second
    assert second.count("mini & mini &") == 1
    assert "LLaMA" not in second  # no row without a number
