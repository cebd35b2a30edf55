"""Recognise questions of the built-in problems and parse their operations.

    read_question(EXAMPLE, 5)  ->  Chain(4, (("+", 1), ("-", 4), ("*", 2)))

It accepts the sentences of the generator, with operations in any order, with any of its names and objects and numbers of up to 4 digits.
"""

import re
from functools import cache

from kava.config import MiniDataConfig
from kava.data.mini import words
from kava.data.mini.chains import Chain, Operation

PIECE = re.compile(r"<<|>>|[^\w\s]|\w+")
_PEOPLE = [name for names in words.NAMES.values() for name in names]
_SUBJECTS = [*_PEOPLE, *words.NAMES, *(pronoun.lower() for pronoun in words.NAMES)]
_SLOTS = {
    "{S}": _SUBJECTS, "{s}": _SUBJECTS, "{name}": _PEOPLE, "{other}": _PEOPLE, "{o}": words.OBJECTS, "{x}": words.OBJECTS,
    "{m}": [*words.FACTOR_VERBS.values()],
}  # fmt: skip
_FACTORS = {verb: factor for factor, verb in words.FACTOR_VERBS.items()}
_STYLES = (words.TRAINED, words.REWORDED)


def read_question(question: str, modulus: int) -> Chain | None:
    """Return the start and the operations of a question; None if it is not a built-in problem with boxes of `modulus`."""
    sentences = _sentences(question)
    if len(sentences) < 2:
        return None
    first, *middle, last = sentences
    start = _first_match(tuple(text for style in _STYLES for text in style.start), first)
    asked = _first_match(tuple(text for style in _STYLES for text in style.question), last)
    if start is None or asked is None or int(start["p"]) != modulus or not _about(asked, start):
        return None
    steps = []
    for sentence in middle:
        step = _step(sentence, start)
        if step is not None:
            steps.append(step)
        elif not _about_someone_else(sentence, start):
            return None
    return Chain(int(start["n"]), tuple(steps))


def why_unanswerable(question: str, config: MiniDataConfig) -> str | None:
    """Return why a model trained on these problems cannot know the answer, as a sentence; None for a question like those in training."""
    chain = read_question(question, config.modulus)
    if chain is None:
        return (
            f"this is no question of the built-in kind (things in boxes of {config.modulus}), the only one that this model was trained on"
        )
    if not config.min_steps <= len(chain.steps) <= config.max_steps:
        return f"this has {_count(len(chain.steps))}; this model was trained on questions with {config.min_steps} to {config.max_steps}"
    return None


def describe_steps(chain: Chain, modulus: int) -> str:
    """Return the calculation of each step as text: "3 + 4 = 7, a box and 2; 2 - 3: open a box, 5 + 2 - 3 = 4"."""
    told, value = [], chain.start
    for (operation, operand), rest in zip(chain.steps, chain.values(modulus), strict=True):
        told.append(_step_worked_out(value, operation, operand, rest, modulus))
        value = rest
    return "; ".join(told)


def _step_worked_out(value: int, operation: Operation, operand: int, rest: int, modulus: int) -> str:
    result = {"+": value + operand, "-": value - operand, "*": value * operand}[operation]
    boxes = (result - rest) // modulus
    sum_text = f"{value} {operation} {operand}"
    if boxes < 0:
        opened = "open a box" if boxes == -1 else f"open {-boxes} boxes"
        return f"{sum_text}: {opened}, {-boxes * modulus} + {sum_text} = {rest}"
    full = {0: "", 1: f", a box and {rest}"}.get(boxes, f", {boxes} boxes and {rest}")
    return f"{sum_text} = {result}{full}"


def _count(steps: int) -> str:
    return f"{steps} step" if steps == 1 else f"{steps} steps"


def _sentences(question: str) -> list[str]:
    """Split a question into sentences, with spaces between all words and marks, as the generator writes them."""
    return re.findall(r"\S[^.?]*[.?]?", " ".join(PIECE.findall(question)))


def _step(sentence: str, start: dict[str, str]) -> tuple[Operation, int] | None:
    for style in _STYLES:
        for operation, phrases in style.operations.items():
            found = _first_match(tuple(phrase.sentence for phrase in phrases), sentence)
            if found is not None and _about(found, start):
                return operation, int(found.get("n") or _FACTORS[found["m"]])
    return None


def _about(found: dict[str, str], start: dict[str, str]) -> bool:
    """Return whether a sentence is about the person and the objects of the first sentence."""
    subjects = {found[slot] for slot in ("S", "s", "name") if slot in found}
    same_person = not subjects & set(_PEOPLE) or subjects & set(_PEOPLE) == {start["name"]}
    return same_person and found.get("o", start["o"]) == start["o"]


def _about_someone_else(sentence: str, start: dict[str, str]) -> bool:
    found = _first_match(words.DISTRACTORS, sentence)
    return found is not None and found["other"] != start["name"] and found["x"] != start["o"]


def _first_match(templates: tuple[str, ...], sentence: str) -> dict[str, str] | None:
    found = (pattern.fullmatch(sentence) for pattern in map(_pattern, templates))
    return next((match.groupdict() for match in found if match), None)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """Compile a template to a regular expression with a group for each slot."""
    parts = []
    for word in template.split():
        if word in ("{n}", "{p}"):
            parts.append(rf"(?P<{word[1:-1]}>[0-9]{{1,4}})")
        elif word in _SLOTS:
            parts.append(f"(?P<{word[1:-1]}>{'|'.join(_SLOTS[word])})")
        else:
            parts.append(re.escape(word))
    return re.compile(" ".join(parts))
