"""The built-in word problems: disjoint, balanced, right, reproducible."""

import itertools
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from kava.config import MiniDataConfig
from kava.data.example import Example
from kava.data.fingerprint import fingerprint
from kava.data.mini.chains import Chain, group_of, operands
from kava.data.mini.problems import SPLITS, generate, vocabulary
from kava.data.mini.words import NAMES, OBJECTS, REWORDED, TRAINED

CONFIG = MiniDataConfig(num_train=1000, num_eval=100)
EQUATION = re.compile(r"<<(\d+)([-+*])(\d+)=(\d+)>>")
RECORDED = {
    "train": "68a1c4c3825f9cca",
    "validation": "6b53e383ba4b9de5",
    "test": "d1ccb7fe146d22b4",
    "larger": "847e8a87f6b925c7",
    "rephrased": "b096045c8b1fed30",
    "reworded": "80c7132e7e02c6db",
}


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Example]]:
    return {split: generate(split, CONFIG) for split in SPLITS}


def _numbers(example: Example) -> list[tuple[int, str, int, int]]:
    found = [EQUATION.fullmatch(step) for step in example.steps]
    assert all(found)
    return [(int(m[1]), m[2], int(m[3]), int(m[4])) for m in found if m]


def _reduced(example: Example, modulus: int) -> Chain:
    steps = _numbers(example)
    return Chain(steps[0][0] % modulus, tuple((operation, operand % modulus) for _, operation, operand, _ in steps))


def _compute(a: int, operation: str, b: int, modulus: int) -> int:
    if operation == "*":
        return sum([a] * b) % modulus
    return (a + b if operation == "+" else a - b) % modulus


@pytest.mark.parametrize("modulus", [2, 3, 10, 12])
def test_answers_follow_from_the_traces(modulus: int) -> None:
    config = MiniDataConfig(modulus=modulus, num_train=60, num_eval=30)
    for split in SPLITS:
        for example in generate(split, config):
            before = _numbers(example)[0][0]
            for a, operation, b, result in _numbers(example):
                assert a == before
                assert result == _compute(a, operation, b, modulus)
                before = result
            assert example.answer == str(before)


@pytest.mark.parametrize("split", ["validation", "test", "larger"])
def test_the_question_tells_the_trace(splits: dict[str, list[Example]], split: str) -> None:
    """Without distractors, a question's numbers are the box, the start and the operands; doubles, triples, quadruples are 2, 3, 4."""
    spoken = {"doubles": 2, "triples": 3, "quadruples": 4}
    for example in splits[split]:
        words = [word for word in example.question.split() if word.isdigit() or word in spoken]
        steps = _numbers(example)
        told = [spoken.get(word) or int(word) for word in words]
        start = steps[0][0]
        assert told[:2] in ([CONFIG.modulus, start], [start, CONFIG.modulus])
        assert told[2:] == [operand for _, _, operand, _ in steps]


def test_every_way_of_telling_says_when_a_box_is_full_and_asks_for_the_rest() -> None:
    """Packing by p is what makes 3 + 4 = 2: nobody should have to look that up."""
    for style in (TRAINED, REWORDED):
        for start in style.start:
            words = start.format(name="Tom", p=5, n=3, o="apples").split()
            assert {"box", "boxes"} & set(words)
            assert {"packs", "fill", "full"} & set(words)
            assert ("5" in words, "3" in words) == (True, True)
        assert all("boxes" in question.split() and "outside" in question.split() for question in style.question)


def test_a_verb_tells_the_operation() -> None:
    told = {"+": "finds", "-": "loses", "*": "multiplies"}
    for operation, verb in told.items():
        sentences = [phrase.sentence for phrase in TRAINED.operations[operation]]
        assert any(verb in sentence.split() for sentence in sentences)
        assert not any(verb in p.sentence.split() for other in told if other != operation for p in TRAINED.operations[other])


def test_splits_share_no_chain(splits: dict[str, list[Example]]) -> None:
    chains = {split: {_reduced(example, CONFIG.modulus) for example in examples} for split, examples in splits.items()}
    for split in ("validation", "test", "larger", "rephrased", "reworded"):
        assert not chains["train"] & chains[split]
    for split in ("test", "larger", "rephrased", "reworded"):
        assert not chains["validation"] & chains[split]


def test_about_a_tenth_of_long_chains_is_held_out() -> None:
    chains = [Chain(start, (("+", a), ("-", b), ("*", 3))) for start in range(10) for a in range(1, 10) for b in range(1, 10)]
    counts = Counter(group_of(chain, 10) for chain in chains)
    assert 0.03 < counts["validation"] / len(chains) < 0.07
    assert 0.03 < counts["test"] / len(chains) < 0.07


@pytest.mark.parametrize("modulus", [2, 3, 10])
def test_no_group_of_short_chains_is_empty(modulus: int) -> None:
    moves = [(operation, n) for operation, several in operands(modulus).items() for n in several]
    counts = Counter(group_of(Chain(start, (move,)), modulus) for start in range(modulus) for move in moves)
    assert counts.total() == modulus * len(moves)
    assert min(counts["train"], counts["validation"], counts["test"]) >= 1
    assert counts["train"] >= counts.total() - max(2, round(0.11 * counts.total()))


def test_factors_are_coprime_and_not_one() -> None:
    assert operands(10)["*"] == (3, 7, 9)
    assert operands(7)["*"] == (2, 3, 4, 5, 6)
    assert "*" not in operands(2)
    larger = [b for example in generate("larger", CONFIG) for _, operation, b, _ in _numbers(example) if operation == "*"]
    assert {b % 10 for b in larger} == {3, 7, 9}


@pytest.mark.parametrize("split", SPLITS)
def test_numbers_of_steps_are_balanced(splits: dict[str, list[Example]], split: str) -> None:
    counts = Counter(len(example.steps) for example in splits[split])
    assert set(counts) == {1, 2, 3, 4, 5}
    assert set(counts.values()) == {len(splits[split]) // 5}


def test_operands_are_as_large_as_the_split_says(splits: dict[str, list[Example]]) -> None:
    def sizes(split: str) -> list[bool]:
        steps = [_numbers(example) for example in splits[split]]
        return [number >= 10 for several in steps for number in (several[0][0], *(b for _, _, b, _ in several))]

    assert all(sizes("larger"))
    assert not any(sizes("validation"))
    assert not any(sizes("test"))
    assert not any(sizes("rephrased"))
    assert not any(sizes("reworded"))
    assert 0.035 < sum(sizes("train")) / len(sizes("train")) < 0.065
    assert max(int(n) for example in splits["larger"] for n in re.findall(r"\d+", example.question)) == 29


def _people(example: Example) -> int:
    return len(set(example.question.split()) & {name for names in NAMES.values() for name in names})


def test_distractors_are_where_they_should_be(splits: dict[str, list[Example]]) -> None:
    assert {_people(example) for example in splits["test"] + splits["validation"] + splits["larger"] + splits["rephrased"]} == {1}
    assert {_people(example) for example in splits["reworded"]} == {2}
    assert 0.03 < sum(_people(example) == 2 for example in splits["train"]) / len(splits["train"]) < 0.07


def test_a_pronoun_never_follows_a_sentence_about_someone_else(splits: dict[str, list[Example]]) -> None:
    everyone = {name for names in NAMES.values() for name in names}
    seen = 0
    for example in splits["reworded"] + splits["train"]:
        sentences = [sentence.split() for sentence in re.split(r"(?<=[.?]) ", example.question)]
        owner = next(word for word in sentences[0] if word in everyone)
        for sentence, after in itertools.pairwise(sentences):
            if everyone.intersection(sentence) - {owner}:
                seen += 1
                assert not {"He", "She", "he", "she"}.intersection(after)
    assert seen > 100


def test_words(splits: dict[str, list[Example]]) -> None:
    known = set(vocabulary(CONFIG))
    assert len(known) == len(vocabulary(CONFIG))
    for split in SPLITS:
        for example in [*splits[split], *generate(split, CONFIG, "natural_language", 40)]:
            assert set(example.question.split()) <= known
            assert example.answer in known
            if not example.steps[0].startswith("<<"):
                assert set(" ".join(example.steps).split()) <= known


def test_reworded_uses_words_of_training_but_not_its_sentences(splits: dict[str, list[Example]]) -> None:
    trained = {word for example in splits["train"] for word in example.question.split()}
    for split in ("rephrased", "reworded"):
        assert {word for example in splits[split] for word in example.question.split()} <= trained
    ways = [
        {*style.start, *style.question, *(phrase.sentence for several in style.operations.values() for phrase in several)}
        for style in (TRAINED, REWORDED)
    ]
    assert not ways[0] & ways[1]


def test_there_is_enough_variety() -> None:
    assert sum(map(len, NAMES.values())) >= 20
    assert len(set(OBJECTS)) >= 20
    for style in (TRAINED, REWORDED):
        assert {operation: len(several) >= 4 for operation, several in style.operations.items()} == {"+": True, "-": True, "*": True}


def test_both_traces_tell_the_same() -> None:
    words = {"plus": "+", "minus": "-", "times": "*"}
    for split in SPLITS:
        for equation, sentence in zip(generate(split, CONFIG, limit=30), generate(split, CONFIG, "natural_language", 30), strict=True):
            assert (equation.question, equation.answer, equation.id) == (sentence.question, sentence.answer, sentence.id)
            told = [re.search(r"so (\d+) (\w+) (\d+) leaves (\d+) outside the boxes", step) for step in sentence.steps]
            assert [f"<<{m[1]}{words[m[2]]}{m[3]}={m[4]}>>" for m in told if m] == list(equation.steps)


def test_fewer_problems_are_a_prefix_of_more(splits: dict[str, list[Example]]) -> None:
    assert generate("train", CONFIG, limit=40) == splits["train"][:40]
    assert generate("train", CONFIG.model_copy(update={"num_train": 40})) == splits["train"][:40]
    assert len({example.id for example in splits["train"]}) == len(splits["train"])


def test_the_seed_changes_the_problems_but_not_the_split_of_chains() -> None:
    other = CONFIG.model_copy(update={"data_seed": 1})
    assert generate("test", other) != generate("test", CONFIG)
    trained = {_reduced(example, 10) for example in generate("train", CONFIG, limit=300)}
    assert not trained & {_reduced(example, 10) for example in generate("test", other)}


@pytest.mark.parametrize("split", SPLITS)
def test_the_problems_are_those_that_were_recorded(splits: dict[str, list[Example]], split: str) -> None:
    assert fingerprint(splits[split][:100]) == RECORDED[split]


def test_another_process_with_another_hash_seed_generates_the_same(splits: dict[str, list[Example]]) -> None:
    code = (
        "from kava.config import MiniDataConfig; from kava.data.mini.problems import generate;"
        "from kava.data.fingerprint import fingerprint;"
        "print(fingerprint(generate('train', MiniDataConfig(), limit=100)))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == fingerprint(splits["train"][:100])


def test_one_length_of_chain() -> None:
    examples = generate("validation", MiniDataConfig(modulus=2, min_steps=1, max_steps=1, num_eval=20))
    assert {len(example.steps) for example in examples} == {1}
    assert len({_reduced(example, 2) for example in examples}) == 1
