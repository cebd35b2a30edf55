"""Split a text that is being generated into pieces that will not change any more."""

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a character of several tokens is decoded to until its last token."""


class StableText:
    """Pieces of a growing text; together they are the whole text.

    The end of a text that grows token by token may still change: a character may be unfinished, and some tokenizers remove spaces.
    The common prefix of two consecutive texts is considered final, up to unfinished characters at its end.
    """

    def __init__(self) -> None:
        self._before = self._shown = ""

    def of(self, text: str) -> str:
        """Return the new final part of the text, which has grown to `text`."""
        agreed = 0
        for old, new in zip(self._before, text, strict=False):
            if old != new:
                break
            agreed += 1
        self._before = text
        piece = text[len(self._shown) : agreed].rstrip(UNFINISHED)
        self._shown += piece
        return piece

    def rest(self, text: str) -> str:
        """Return the part of the whole text that has not been returned yet."""
        return text[len(self._shown) :]
