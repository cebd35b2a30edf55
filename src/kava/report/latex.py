"""The paper's Tables 1 and 2 as LaTeX (booktabs), from `data/tables.tex.j2`.

text = render_latex(aggregates, load_reference(), standalone=False)
"""

import unicodedata
from collections.abc import Sequence
from importlib import resources

from kava.experiment.aggregate_file import Aggregate
from kava.report.reference import Reference
from kava.report.rows import UNCONFIRMED, AccuracyRow, EfficiencyRow, accuracy_rows, dataset_columns, efficiency_rows, number

_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    UNCONFIRMED: r"\textsuperscript{\textdagger}", "±": r"$\pm$", "α": r"$\alpha$", "λ": r"$\lambda$",
}  # fmt: skip


def render_latex(aggregates: Sequence[Aggregate], reference: Reference, standalone: bool = False) -> str:
    """Both tables, ours beside the reference rows with their source.

    Args:
        aggregates: what was measured, in the order of the rows.
        reference: the numbers to set beside.
        standalone: a whole document in place of tables to \\input.
    """
    import jinja2

    template_dir = resources.files("kava.report") / "data"
    environment = jinja2.Environment(
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>", trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.filters["tex"] = escape
    names = dataset_columns(aggregates)
    labels = [reference.dataset_label(name) for name in names]
    accuracy, efficiency = accuracy_rows(aggregates, reference), efficiency_rows(aggregates, reference)

    def cells(row: AccuracyRow) -> list[str]:
        return [row.cells.get(name, number(None)) for name in names]

    return environment.from_string((template_dir / "tables.tex.j2").read_text(encoding="utf-8")).render(
        standalone=standalone,
        columns=labels,
        listed=", ".join(labels[:-1]) + f", and {labels[-1]}",
        accuracy=accuracy,
        efficiency=efficiency,
        accuracy_sources=numbered_sources(accuracy),
        efficiency_sources=numbered_sources(efficiency),
        cells=cells,
        legend=lambda sources: "; ".join(f"[{number}] {escape(source)}" for source, number in sources.items()),
        note=r"\textsuperscript{\textdagger}\,no second source gives this figure.",
    )


def numbered_sources(groups: Sequence[Sequence[AccuracyRow | EfficiencyRow]]) -> dict[str, int]:
    """The sources of a table in the order of its rows, numbered from 1: written out in every row they would not fit on a page."""
    return {source: number for number, source in enumerate(dict.fromkeys(row.source for group in groups for row in group), 1)}


def escape(text: str) -> str:
    """Plain text for LaTeX with the T1 encoding: active characters escaped, control characters left out, letters beyond Latin as '?'."""
    return "".join(_ESCAPES.get(character) or _latin(character) for character in text)


def _latin(character: str) -> str:
    if character.isprintable() and ord(character) < 0x250 and (character.isascii() or character.isalpha()):
        return character
    if character.isspace():
        return " "
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(_ESCAPES.get(c, c) for c in plain if c.isprintable()) or ("" if not character.isprintable() else "?")
