"""Words of the built-in word problems: names, objects and sentence templates, every word and mark separated by spaces.

Slots: {S} subject at the beginning of a sentence, {s} inside one (name or pronoun), {name} the person, {o} the objects, {p} how many of
them fill a box, {n} a number, {m} a factor as a verb, {other} and {x} another person and other objects.
`REWORDED` uses only words of the training templates, in sentences that these do not contain.
"""

from dataclasses import dataclass

from kava.data.mini.chains import Operation

NAMES = {
    "He": ("Tom", "Ben", "Sam", "Max", "Leo", "Jack", "Adam", "Omar", "Ivan", "Hugo", "Liam", "Noah"),
    "She": ("Anna", "Mia", "Lucy", "Emma", "Sara", "Nora", "Ella", "Ruth", "Wei", "Zoe", "Lena", "Kate"),
}
OBJECTS = (
    "apples", "pears", "plums", "lemons", "shells", "stones", "coins", "cards", "books", "pens", "cups", "hats",
    "keys", "balls", "stamps", "marbles", "beads", "boats", "kites", "flags", "bells", "ropes", "masks", "tiles",
)  # fmt: skip
OPERATION_WORDS: dict[Operation, str] = {"+": "plus", "-": "minus", "*": "times"}
FACTOR_VERBS = {2: "doubles", 3: "triples", 4: "quadruples"}


@dataclass(frozen=True, slots=True)
class Phrase:
    """One way to express an operation: the sentence of the question, and the verb phrase of the natural-language trace."""

    sentence: str
    verb: str


@dataclass(frozen=True, slots=True)
class Style:
    """All templates of one style of problems."""

    start: tuple[str, ...]
    operations: dict[Operation, tuple[Phrase, ...]]
    question: tuple[str, ...]


DISTRACTORS = ("{other} has {n} {x} .", "{other} buys {n} {x} .", "{other} loses {n} {x} .", "Then {other} finds {n} more {x} .")
TRACE = "{name} {verb} , so {a} {word} {n} leaves {r} outside the boxes ."

TRAINED = Style(
    start=(
        "{name} packs {o} in boxes of {p} and has {n} left .",
        "{name} packs every {p} {o} in a box and has {n} more .",
        "Every {p} {o} fill a box , and {name} has {n} more .",
        "At first {name} has full boxes of {p} {o} and {n} left .",
        "{name} starts with {n} {o} left and packs every {p} in a box .",
    ),
    operations={
        "+": (
            Phrase("{S} finds {n} more .", "finds {n}"),
            Phrase("{S} buys {n} {o} .", "buys {n}"),
            Phrase("Then {s} gets {n} more {o} .", "gets {n}"),
            Phrase("After that , {s} picks {n} more {o} .", "picks {n}"),
            Phrase("A friend gives {n} {o} to {name} .", "is given {n}"),
            Phrase("The number of {o} grows by {n} .", "gets {n} more"),
        ),
        "-": (
            Phrase("{S} loses {n} .", "loses {n}"),
            Phrase("{S} sells {n} {o} .", "sells {n}"),
            Phrase("Then {s} gives {n} {o} to a friend .", "gives away {n}"),
            Phrase("After that , {s} drops {n} of the {o} .", "drops {n}"),
            Phrase("Later {s} uses {n} .", "uses {n}"),
        ),
        "*": (
            Phrase("{S} multiplies the {o} by {n} .", "multiplies by {n}"),
            Phrase("Then {s} has {n} times as many {o} .", "has {n} times as many"),
            Phrase("Later the {o} become {n} times as many .", "has {n} times as many"),
            Phrase("After that , {s} makes them {n} times as many .", "makes them {n} times as many"),
            Phrase("{S} {m} the {o} .", "{m} the {o}"),
        ),
    },
    question=(
        "How many {o} are outside the boxes ?",
        "How many {o} are outside the boxes now ?",
        "How many {o} are outside full boxes after that ?",
        "What is the number of {o} outside the boxes ?",
        "Now what is the number of {o} outside the boxes ?",
        "How many {o} does {name} have outside full boxes ?",
        "After all of that , how many {o} are outside full boxes ?",
    ),
)

# Verbs of the training templates in sentence patterns that training uses only with other verbs.
REWORDED = Style(
    start=(
        "At first {name} packs {o} in boxes of {p} and has {n} more .",
        "{name} starts with full boxes of {p} {o} and {n} left .",
        "{name} has {n} {o} left and every {p} fill a box .",
    ),
    operations={
        "+": (
            Phrase("Then {s} finds {n} {o} .", "finds {n}"),
            Phrase("After that , {s} buys {n} more .", "buys {n}"),
            Phrase("{S} gets {n} more {o} .", "gets {n}"),
            Phrase("Then {s} picks {n} more .", "picks {n}"),
        ),
        "-": (
            Phrase("Then {s} loses {n} {o} .", "loses {n}"),
            Phrase("After that , {s} sells {n} of the {o} .", "sells {n}"),
            Phrase("{S} gives {n} of the {o} to a friend .", "gives away {n}"),
            Phrase("{S} drops {n} .", "drops {n}"),
            Phrase("Then {s} uses {n} of the {o} .", "uses {n}"),
        ),
        "*": (
            Phrase("Then {s} multiplies the {o} by {n} .", "multiplies by {n}"),
            Phrase("After that , {s} has {n} times as many .", "has {n} times as many"),
            Phrase("Then the {o} become {n} times as many .", "has {n} times as many"),
            Phrase("{S} makes them {n} times as many .", "makes them {n} times as many"),
            Phrase("Later {s} {m} the {o} .", "{m} the {o}"),
        ),
    },
    question=(
        "Now how many {o} are outside full boxes ?",
        "After that , how many {o} does {name} have outside the boxes ?",
        "What is the number of {o} outside full boxes now ?",
    ),
)


def words() -> set[str]:
    """Return every word and mark that can occur in training questions and traces, without numbers."""
    phrases = [phrase for several in TRAINED.operations.values() for phrase in several]
    told = [text for phrase in phrases for text in (phrase.sentence, phrase.verb)]
    templates = [*TRAINED.start, *told, *TRAINED.question, *DISTRACTORS, TRACE]
    found = {word for template in templates for word in template.split() if not word.startswith("{")}
    people = {name for names in NAMES.values() for name in names}
    pronouns = {form for pronoun in NAMES for form in (pronoun, pronoun.lower())}
    return found | people | pronouns | set(OBJECTS) | set(OPERATION_WORDS.values()) | set(FACTOR_VERBS.values())
