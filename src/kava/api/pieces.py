"""A text that is being written, in pieces that will not change any more."""


class Pieces:
    """The pieces together are the whole text.

    The end of a text that grows token by token may still change: a letter of several tokens is U+FFFD until its last one, and some
    tokenizers close up spaces. What two texts in a row agree on stays.
    """

    def __init__(self) -> None:
        self._before = self._shown = ""

    def of(self, text: str) -> str:
        """What is new and settled, once the text has grown to this."""
        agreed = 0
        for old, new in zip(self._before, text, strict=False):
            if old != new:
                break
            agreed += 1
        self._before = text
        piece = text[len(self._shown) : agreed]
        self._shown += piece
        return piece

    def rest(self, text: str) -> str:
        """What is missing of the whole text."""
        return text[len(self._shown) :]
