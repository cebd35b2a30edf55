"""The fingerprint of data: its content and its order, and nothing else."""

from dataclasses import replace

from helpers.tiny import mini_examples
from kava.data.fingerprint import Fingerprint, fingerprint


def test_content_and_order_count_and_ids_do_not() -> None:
    examples = list(mini_examples(3))
    found = fingerprint(examples)
    assert len(found) == 16
    assert fingerprint([replace(example, id=f"other{number}") for number, example in enumerate(examples)]) == found
    changes = [{"question": "?"}, {"answer": "x"}, {"steps": ()}]
    others = [examples[::-1], examples[:2], *([replace(examples[0], **change), *examples[1:]] for change in changes)]
    assert len({found, *map(fingerprint, others)}) == 6


def test_one_example_at_a_time_is_the_same() -> None:
    running = Fingerprint()
    for example in mini_examples(3):
        running.add(example)
    assert str(running) == fingerprint(mini_examples(3))
