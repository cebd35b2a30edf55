"""The paper's Tables 1 and 2 as LaTeX (booktabs), from `data/tables.tex.j2`.

text = render_latex(groups, load_reference(), standalone=False)
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from kava.report.group import Group, variants
from kava.report.reference import Reference
from kava.report.table import NOTHING, PARTIAL, SOURCE, UNCONFIRMED, Cell, Table, numbered_sources
from kava.report.tables import DATA, INTERVAL, MODEL, accuracy_table, efficiency_table, label_of, told_apart

_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    UNCONFIRMED: r"\textsuperscript{\textdagger}", PARTIAL: r"\textsuperscript{\textdaggerdbl}", "±": r"$\pm$", "α": r"$\alpha$",
    "λ": r"$\lambda$",
}  # fmt: skip
# A page is narrow, so the headings are short; `Dataset` is the heading of the guide.
_MEASURES = 4  # numeric columns per table; further ones go into another table
_HEADINGS = {DATA: "Dataset", "Forward passes": "Passes", "Milliseconds": "ms", "Cache, KiB": "KiB"}


@dataclass(frozen=True)
class _Printed:
    """A table for the template: escaped text, rows grouped by model and training data."""

    label: str
    caption: str
    columns: list[str]
    alignment: str
    groups: list[list[list[str]]]
    notes: list[str]


def render_latex(groups: Sequence[Group], reference: Reference, standalone: bool = False) -> str:
    """Return both tables as LaTeX: our rows and the reference rows, each with its source.

    Args:
        groups: measured configurations, in the order of the rows.
        reference: the reference numbers.
        standalone: return a whole document instead of tables to \\input.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kava.report", "data"),
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>", trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    labelled = told_apart([(group, label_of(group, departures, reference)) for group, departures in variants(groups)])
    tables = [table(labelled, reference, reference.rows) for table in (accuracy_table, efficiency_table)]
    methods = list(reference.labels.methods.values())
    return environment.get_template("tables.tex.j2").render(
        standalone=standalone, tables=[part for table in tables for part in _printed(table, methods)]
    )


def _printed(table: Table, methods: Sequence[str]) -> list[_Printed]:
    middle = [name for name in table.columns if name not in ("Method", MODEL, DATA, SOURCE)]
    texts, numbers = ([name for name in middle if table.numeric[table.columns.index(name)] is kind] for kind in (False, True))
    parts = []
    for start in range(0, len(numbers), _MEASURES):
        own = numbers[start : start + _MEASURES]
        part = table.only([MODEL, DATA, *texts, *own, "Method", SOURCE])
        places = [part.columns.index(name) for name in own]
        rows = [row for row in part.rows if any(row[place].text != NOTHING for place in places)]
        parts.append(_part(replace(part, rows=rows), f"{table.name}-{start // _MEASURES + 1}" if start else table.name, methods))
    return parts


def _part(table: Table, label: str, methods: Sequence[str]) -> _Printed:
    table = numbered_sources(_named_by_method(table, methods))
    notes = [note for note in table.notes if not note.startswith("[")]
    sources = "; ".join(note for note in table.notes if note.startswith("["))
    return _Printed(
        label,
        # Cells are printed without their intervals.
        escape(f"{table.caption.replace(f' and {INTERVAL}', '')}."),
        [escape(_HEADINGS.get(name, name)) for name in table.columns],
        "".join("c" if numeric else "l" for numeric in table.numeric),
        [[[escape(cell.text) for cell in row] for row in own] for _, own in groupby(table.rows, key=_whose)],
        [escape(note) for note in [sources, *notes]],
    )


def _named_by_method(table: Table, methods: Sequence[str]) -> Table:
    """Leave the name of the method alone in its column; its source says what a label has beyond: on a page it would not fit."""
    place, source, rows = table.columns.index("Method"), table.columns.index(SOURCE), []
    for row in table.rows:
        label, changed = row[place].text, list(row)
        name = max((name for name in methods if label.startswith(name)), key=len, default=label)
        changed[place] = Cell(name)
        if rest := label.removeprefix(name).strip(" ,()"):
            changed[source] = Cell(f"{row[source].text} ({rest})")
        rows.append(changed)
    return replace(table, rows=rows)


def _whose(row: Sequence[Cell]) -> tuple[str, str]:
    return row[0].text, row[1].text


# Letters of Latin Extended-A that the T1 encoding lacks.
_NOT_IN_T1 = "ĦħĸĿŀŉŦŧſ"


def escape(text: str) -> str:
    """Escape plain text for LaTeX with the T1 encoding.

    Active characters are escaped, white space becomes a space, and other control characters are dropped. A character that T1 lacks
    becomes its ASCII decomposition, or '?' if it has none.
    """
    return "".join(_ESCAPES.get(character) or _latin(character) for character in text)


def _latin(character: str) -> str:
    known = ord(character) < 0x180 and character not in _NOT_IN_T1
    if character.isprintable() and known and (character.isascii() or character.isalpha()):
        return character
    if character.isspace():
        return " "
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(_ESCAPES.get(c, c) for c in plain if c.isprintable()) or ("" if not character.isprintable() else "?")
