"""Generator of the built-in word problems of the mini experiment: any number of problems from a seed, without a download.

    Tom packs apples in boxes of 5 and has 4 left . He finds 1 more . Then he gives 4 apples to a friend . Tom doubles the apples .
    How many apples are outside the boxes ?

    <<4+1=0>> <<0-4=1>> <<1*2=2>>     2

p objects fill a box (`MiniDataConfig.modulus`; 5 above), and the objects outside the boxes are counted: 4 + 1 = 5 is one box and 0;
to give 4 away, a box is opened, 5 + 0 - 4 = 1. So all results are in 0 .. p-1: the answer is one token of a closed
vocabulary and cannot be guessed from the size of the numbers. A problem has min_steps .. max_steps operations: addition, subtraction,
and multiplication by a factor coprime to p.

Train, validation and test share no chain of operations: a hash of the chain, with its numbers reduced modulo p, assigns it to train
(90 %), validation or test. `larger`, `rephrased` and `reworded` use chains of the test group with other numbers or words, so that a
difference to `test` is due to these alone; `reworded` is `rephrased` with a sentence about someone else in every question.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from kava.config import MiniDataConfig
from kava.data.example import CotType, Example
from kava.data.mini import words
from kava.data.mini.chains import Chain, Group, Operation, enlarge_operands, sample_chain

# The example problem that is used throughout the project: a chain of the test group; the answer is 2.
EXAMPLE = (
    "Tom packs apples in boxes of 5 and has 4 left . He finds 1 more . Then he gives 4 apples to a friend . Tom doubles the apples . "
    "How many apples are outside the boxes ?"
)
_PRONOUN_RATE = 0.7


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a split is generated; a rate of None stands for the configured rate."""

    group: Group
    style: words.Style = words.TRAINED
    large_operand_rate: float | None = 0.0
    distractor_rate: float | None = 0.0


_PLANS = {
    "train": _Plan("train", large_operand_rate=None, distractor_rate=None),
    "validation": _Plan("validation"),
    "test": _Plan("test"),
    "larger": _Plan("test", large_operand_rate=1.0),
    "rephrased": _Plan("test", style=words.REWORDED),
    "reworded": _Plan("test", style=words.REWORDED, distractor_rate=1.0),
}
SPLITS = tuple(_PLANS)


@dataclass(frozen=True, slots=True)
class _Scene:
    name: str
    pronoun: str
    objects: str


def generate(split: str, config: MiniDataConfig, cot_type: CotType = "equation", limit: int | None = None) -> list[Example]:
    """Generate a split of `SPLITS`: num_train problems of train, num_eval of any other, at most `limit`.

    The same configuration gives the same problems in any process. Both kinds of trace have the same questions, and a smaller number
    of problems is a prefix of a larger one. Numbers of steps are balanced within every block of max_steps - min_steps + 1 problems.

    Raises:
        KeyError: `split` is not in `SPLITS`.
    """
    return list(problems(split, config, cot_type, limit))


def problems(split: str, config: MiniDataConfig, cot_type: CotType = "equation", limit: int | None = None) -> Iterator[Example]:
    """Yield the problems of `generate` one at a time."""
    plan = _PLANS[split]
    count = config.num_train if split == "train" else config.num_eval
    rng = random.Random(f"kava mini {config.data_seed} {split}")
    lengths = _lengths(config, rng)
    amount = count if limit is None else min(count, limit)
    for number in range(1, amount + 1):
        yield _problem(plan, config, cot_type, next(lengths), rng, f"mini/{split}/{number}")


def vocabulary(config: MiniDataConfig) -> list[str]:
    """Return every word, mark and number (0 .. 3p-1) that can occur in questions, natural-language steps and answers, in a fixed order."""
    return [str(number) for number in range(3 * config.modulus)] + sorted(words.words())


def _lengths(config: MiniDataConfig, rng: random.Random) -> Iterator[int]:
    block = list(range(config.min_steps, config.max_steps + 1))
    while True:
        rng.shuffle(block)
        yield from block


def _problem(plan: _Plan, config: MiniDataConfig, cot_type: CotType, length: int, rng: random.Random, identity: str) -> Example:
    large = config.large_operand_rate if plan.large_operand_rate is None else plan.large_operand_rate
    distracting = config.distractor_rate if plan.distractor_rate is None else plan.distractor_rate
    chain = enlarge_operands(sample_chain(rng, length, plan.group, config.modulus), large, config.modulus, rng)
    pronoun = rng.choice(tuple(words.NAMES))
    scene = _Scene(rng.choice(words.NAMES[pronoun]), pronoun, rng.choice(words.OBJECTS))
    phrases = [_choose_phrase(plan.style, operation, operand, rng) for operation, operand in chain.steps]
    question = _tell(plan.style, scene, chain, phrases, rng.random() < distracting, config.modulus, rng)
    values = chain.values(config.modulus)
    return Example(question, _trace(scene, chain, phrases, values, cot_type), str(values[-1]), identity)


def _choose_phrase(style: words.Style, operation: Operation, operand: int, rng: random.Random) -> words.Phrase:
    return rng.choice([phrase for phrase in style.operations[operation] if "{m}" not in phrase.sentence or operand in words.FACTOR_VERBS])


def _tell(
    style: words.Style, scene: _Scene, chain: Chain, phrases: list[words.Phrase], distracted: bool, modulus: int, rng: random.Random
) -> str:
    """Return the whole question; a pronoun never follows a sentence about someone else."""
    sentences = [rng.choice(style.start).format(name=scene.name, p=modulus, n=chain.start, o=scene.objects)]
    someone_else = rng.randint(0, len(phrases)) if distracted else None
    for index, (phrase, (_, operand)) in enumerate(zip(phrases, chain.steps, strict=True)):
        if index == someone_else:
            sentences.append(_distractor(scene, modulus, rng))
        named = rng.random() >= _PRONOUN_RATE or index == someone_else
        subject, inner = (scene.name, scene.name) if named else (scene.pronoun, scene.pronoun.lower())
        verb = words.FACTOR_VERBS.get(operand, "")
        sentences.append(phrase.sentence.format(S=subject, s=inner, name=scene.name, n=operand, o=scene.objects, m=verb))
    if someone_else == len(phrases):
        sentences.append(_distractor(scene, modulus, rng))
    ask = rng.choice(style.question).format(name=scene.name, o=scene.objects)
    return " ".join([*sentences, ask])


def _distractor(scene: _Scene, modulus: int, rng: random.Random) -> str:
    other = rng.choice([name for names in words.NAMES.values() for name in names if name != scene.name])
    objects = rng.choice([several for several in words.OBJECTS if several != scene.objects])
    return rng.choice(words.DISTRACTORS).format(other=other, n=rng.randrange(modulus), x=objects)


def _trace(scene: _Scene, chain: Chain, phrases: list[words.Phrase], values: list[int], cot_type: CotType) -> tuple[str, ...]:
    before = [chain.start, *values[:-1]]
    steps = zip(before, chain.steps, values, phrases, strict=True)
    if cot_type == "equation":
        return tuple(f"<<{a}{operation}{operand}={result}>>" for a, (operation, operand), result, _ in steps)
    return tuple(
        words.TRACE.format(
            name=scene.name,
            verb=phrase.verb.format(n=operand, o=scene.objects, m=words.FACTOR_VERBS.get(operand, "")),
            a=a,
            word=words.OPERATION_WORDS[operation],
            n=operand,
            r=result,
        )
        for a, (operation, operand), result, phrase in steps
    )
