"""A content hash that tells whether two runs saw the same data."""

import hashlib
import json
from collections.abc import Iterable

from kava.data.example import Example


class Fingerprint:
    """SHA-256 over question, steps and answer of every example in order (ids are ignored), updated one example at a time."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, example: Example) -> None:
        """Add the next example to the hash."""
        self._digest.update(json.dumps([example.question, example.steps, example.answer], ensure_ascii=True).encode())
        self._digest.update(b"\n")

    def __str__(self) -> str:
        return self._digest.hexdigest()[:16]


def fingerprint(examples: Iterable[Example]) -> str:
    """Return the `Fingerprint` of all examples as 16 hexadecimal digits."""
    found = Fingerprint()
    for example in examples:
        found.add(example)
    return str(found)
