"""The table type of all commands and output formats: rows of cells with intervals, notes below, and the source of each row.

show([table], console)               # terminal
as_markdown(table), as_csv(table)    # documents, spreadsheets; kava.report.latex writes LaTeX, the page's template writes HTML
"""

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

NOTHING = "--"
SOURCE = "Source"
UNCONFIRMED, PARTIAL = "†", "‡"
# First characters that make a spreadsheet read a text as a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
# Width in characters beyond which a text column on the terminal may wrap.
_WIDEST = 30
# Spaces between two columns.
_GAP = 2


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: text as shown.
        value: unrounded number, for sorting and for spreadsheets; None for text.
        remark: text shown below or after the cell's text, such as an interval.
    """

    text: str
    value: float | int | None = None
    remark: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: short name, unique on a page.
        title: heading, where several tables follow each other.
        caption: description of the numbers.
        columns: headings.
        rows: cells, one per column.
        published: indices of the rows with published numbers.
        notes: lines below the table.
    """

    name: str
    title: str
    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    published: frozenset[int] = frozenset()
    notes: list[str] = field(default_factory=list)

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers; some of its cells may be unknown."""
        return [any(row[index].value is not None for row in self.rows) for index in range(len(self.columns))]

    def only(self, columns: Sequence[str]) -> "Table":
        """Return the table with these columns only, in this order."""
        places = [self.columns.index(name) for name in columns]
        return replace(self, columns=list(columns), rows=[[row[place] for place in places] for row in self.rows])


def number(mean: float | None, std: float | None = None) -> str:
    """Format ``56.5 (0.4)``; without a deviation ``56.5``; '--' for None."""
    if mean is None:
        return NOTHING
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ({std:.1f})"


def measured(mean: float | None, std: float | None = None, mark: str = "", remark: str = "") -> Cell:
    """Return a cell with a mean and its deviation, as `number` formats them, followed by `mark`; '--' for None."""
    return Cell(number(mean, std) + mark, mean, remark)


def percent(fraction: float | None) -> float | None:
    """Convert a fraction to percent."""
    return None if fraction is None else 100 * fraction


def share(fraction: float | None, remark: str = "", std: float | None = None) -> Cell:
    """Return a cell with a fraction (and its deviation) in percent, such as `56.5`; '--' for None."""
    return Cell(number(percent(fraction), percent(std)), fraction, remark)


def signed(points: float, remark: str = "") -> Cell:
    """Return a cell with a sign, such as `+2.1`; adding zero turns a rounded -0.0 into +0.0."""
    return Cell(f"{round(points, 1) + 0.0:+.1f}", points, remark)


def without_constants(table: Table, names: Collection[str]) -> Table:
    """Move columns with these names that are the same in every row into the caption; empty ones are dropped."""
    said, kept = [], []
    for index, name in enumerate(table.columns):
        contents = {(row[index].text, row[index].remark) for row in table.rows}
        if name not in names or len(contents) != 1:
            kept.append(name)
        elif any(text := next(iter(contents))):
            said.append(f"{name}: {text[0]}{f' ({text[1]})' if text[1] else ''}.")
    return replace(table.only(kept), caption=" ".join([f"{table.caption}.", *said]) if said else table.caption)


def numbered_sources(table: Table) -> Table:
    """Replace sources by numbers and list them in the notes: written out in every row, they would not fit on a page."""
    place = table.columns.index(SOURCE)
    numbers = {source: number for number, source in enumerate(dict.fromkeys(row[place].text for row in table.rows), 1)}
    rows = [[*row[:place], Cell(f"[{numbers[row[place].text]}]"), *row[place + 1 :]] for row in table.rows]
    return replace(table, rows=rows, notes=[*table.notes, *(f"[{number}] {source}" for source, number in numbers.items())])


def show(tables: Iterable[Table], console: "Console") -> None:
    """Print tables within the terminal's width: remarks on a second line, and columns that do not fit in a separate block below."""
    from rich.text import Text

    for table in tables:
        if SOURCE in table.columns:
            # Next to the name of the row, so that the source is not alone in a block below.
            first, *others = (name for name in table.columns if name != SOURCE)
            table = numbered_sources(table).only([first, SOURCE, *others])
        if table.title:
            console.print(Text(table.title, style="bold"))
        if table.caption:
            console.print(Text(table.caption, style="italic"))
        console.print()
        widths = [_width(table, index) for index in range(len(table.columns))]
        for block in _blocks(widths, console.width):
            _show_block(table, block, widths, console)
        for note in table.notes:
            console.print(Text(note))


def _width(table: Table, index: int) -> int:
    """Return the width that a column needs in characters: numbers never wrap, headings and texts wrap only between words."""
    longest_word = max((len(word) for word in table.columns[index].split()), default=1)
    lines = _lines(table, index)
    if table.numeric[index]:
        return max([longest_word, *map(len, lines)])
    words = max((len(word) for line in lines for word in line.split()), default=1)
    return max(longest_word, min(words, _WIDEST), min(max(map(len, lines), default=1), _WIDEST))


def _lines(table: Table, index: int) -> list[str]:
    return [line for row in table.rows for line in (row[index].text, row[index].remark)]


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Split columns into blocks that fit side by side; each block begins with the first column, which names the row."""
    blocks, used = [[0]], widths[0]
    for index, width in enumerate(widths[1:], 1):
        if used + _GAP + width > room and len(blocks[-1]) > 1:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(index)
        used += _GAP + width
    return blocks


def _show_block(table: Table, block: Sequence[int], widths: Sequence[int], console: "Console") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    # No frame: the table is narrower, and still readable when it is piped or pasted.
    shown = RichTable(box=SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    spare = console.width - sum(widths[index] + _GAP for index in block) + _GAP
    for index in block:
        # Spare width goes to the columns that would wrap, from left to right.
        natural = max(len(line) for line in [table.columns[index], *_lines(table, index)])
        more = min(max(spare, 0), natural - widths[index])
        spare -= more
        width = min(widths[index] + more, console.width - (widths[0] + _GAP if index else 0))
        shown.add_column(Text(table.columns[index]), overflow="fold", width=max(width, 1))
    for row in table.rows:
        shown.add_row(*(Text("\n".join(filter(None, [row[index].text, row[index].remark]))) for index in block))
    console.print(shown)
    console.print()


def settings_table(title: str, settings: Mapping[str, Sequence[Any]], columns: Sequence[str]) -> Table:
    """Return a table with a row per dotted key and a column per configuration."""
    rows = [[Cell(key), *(Cell(shown(value)) for value in values)] for key, values in settings.items()]
    return Table("settings", title, "", ["setting", *columns], rows)


def shown(value: Any) -> str:
    """Format the value of a setting as YAML writes it on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ", ".join(shown(element) for element in value) + "]"
    return str(value)


def as_markdown(table: Table) -> str:
    """Return the table as Markdown, for documents."""
    if SOURCE in table.columns:
        table = numbered_sources(table)
    lines = [f"### {table.title or table.name}", "", table.caption, ""]
    lines += ["| " + " | ".join(map(_escaped, table.columns)) + " |", "|" + "---|" * len(table.columns)]
    for row in table.rows:
        lines.append("| " + " | ".join(_escaped(" ".join(filter(None, [cell.text, cell.remark]))) for cell in row) + " |")
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes)]) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def as_csv(table: Table) -> str:
    """Return the table as CSV, for spreadsheets: numbers are unrounded, and cells without a measurement are empty.

    It starts with a byte-order mark, without which Excel does not read the text as UTF-8.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow([_plain(cell) for cell in row])
    return "\ufeff" + stream.getvalue()


def _plain(cell: Cell) -> object:
    if cell.value is not None:
        return cell.value
    text = "" if cell.text == NOTHING else cell.text
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text
