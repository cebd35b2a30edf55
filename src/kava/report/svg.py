"""matplotlib figures as inline SVG that follows the page's colours: text stays text, and its dark colour becomes `currentColor`.

markup = inline_svg(lambda: similarity_figure(layers, "keys"), "similarity", "Cosine of keys", "A panel per layer ...")
"""

import io
import re
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING

from kava.explain.figures import any_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Width in pixels above which a figure would be too small to read on a phone; there it keeps a readable size and scrolls.
WIDE = 500
# A placeholder colour that no figure uses; it is replaced by the text colour of the page.
_INK = "#010203"
# Coordinates are cut to hundredths of a point, which is finer than any screen.
_PLACES = re.compile(r' (d|x|y)="([^"]*)"')
_STYLE = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), _INK),
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "legend.frameon": False,
    "svg.fonttype": "none", "svg.hashsalt": "kava", "font.family": "sans-serif", "font.size": 9, "axes.titlesize": 10,
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


def inline_svg(draw: Callable[[], "Figure"], name: str, title: str, description: str) -> str:
    """Draw a figure and return one `<svg>` element.

    Args:
        draw: creates the figure; called with the style of this module.
        name: unique on the page; prefix of every id.
        title, description: text for screen readers.
    """
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), any_text():
        figure = draw()
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _embedded(stream.getvalue(), name, title, description)


def _embedded(text: str, name: str, title: str, description: str) -> str:
    markup = text[text.index("<svg") :]
    # The style element of matplotlib would apply to the whole page; the style sheet of the page has the same rule.
    markup = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", markup, flags=re.S)
    markup = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', markup)
    markup = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", markup)
    markup = markup.replace(_INK, "currentColor")
    # Use the fonts of the page, not those of the machine that drew the figure.
    markup = re.sub(r"font: ((?:\d+ )?[\d.]+px) [^;\"]+", r"font-size: \1", markup)
    markup = re.sub(r"font-size: (?:\d+ )?([\d.]+px)", r"font-size: \1", markup)
    opening = f'<svg role="img" aria-labelledby="{name}-t {name}-d"'
    named = f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>'
    markup = _PLACES.sub(lambda found: f' {found[1]}="{_short(found[2])}"', markup)
    head, _, rest = markup.partition(">")
    width = re.search(r'width="([\d.]+)pt"', head)
    head = re.sub(r' (?:width|height)="[\d.]+pt"', "", head).replace("<svg", opening, 1)
    pixels = float(width[1]) * 4 / 3 if width else 0
    limit = f' style="max-width:{pixels:.0f}px"' + (' class="wide"' if pixels > WIDE else "") if width else ""
    return f"{head}{limit}>{named}{rest}"


def _short(numbers: str) -> str:
    return re.sub(r"(\.\d\d)\d+", r"\1", numbers).replace("\n", "").strip()
