"""The real benchmark files (KAVA_DATA_DIR): how many there are, and what is in them."""

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from helpers.loading import load_examples, train_validation
from kava.data.answers import canonical_number
from kava.data.encoded_rows import Lengths
from kava.data.sources.load import load_benchmark
from kava.train.sampler import LengthSortedSampler, padding_share

pytestmark = pytest.mark.data


@pytest.mark.parametrize(
    ("file", "split", "rows", "with_steps"),
    [
        ("gsm8k_train.jsonl", "validation", 7473, 7378),
        ("gsm8k_train.jsonl", "train", 7378, 7378),
        ("gsm8k_test.jsonl", "test", 1319, 1301),
        ("gsm8k_aug_valid.txt", "validation", 500, 494),
        ("gsm8k_aug_test.txt", "test", 1319, 1301),
        ("gsm8k_hard.jsonl", "test", 1319, 0),
        ("svamp.json", "test", 1000, 0),
    ],
)
def test_counts(data_dir: Path, file: str, split: str, rows: int, with_steps: int) -> None:
    loaded = load_examples(str(data_dir / file), split, cot_type="equation")
    assert len(loaded.examples) == rows
    assert sum(bool(example.steps) for example in loaded.examples) == with_steps
    assert len({example.id for example in loaded.examples}) == rows
    assert (loaded.bad_rows, loaded.skipped_no_trace) == (0, 95 if split == "train" else 0)
    for example in loaded.examples:
        assert canonical_number(example.answer) == example.answer


def test_gsm8k_steps(data_dir: Path) -> None:
    equations = load_examples(str(data_dir), "train", cot_type="equation")
    assert equations.examples[0].steps == ("<<48/2=24>>", "<<48+24=72>>")
    assert max(len(example.steps) for example in equations.examples) == 9
    sentences = load_examples(str(data_dir), "train", cot_type="natural_language")
    assert len(sentences.examples) == 7473
    assert sentences.examples[0].steps == (
        "Natalia sold 48/2 = 24 clips in May.",
        "Natalia sold 48+24 = 72 clips altogether in April and May.",
    )
    assert not any("<<" in step or "####" in step for example in sentences.examples for step in example.steps)


def test_training_with_the_local_files_leaks_no_validation_question(data_dir: Path) -> None:
    train, validation = train_validation(str(data_dir), cot_type="equation")
    assert (len(train.examples), len(validation.examples)) == (6884, 500)
    assert train.note == "494 rows left out that ask a validation question"
    train, validation = train_validation(str(data_dir), cot_type="natural_language")
    assert (len(train.examples), len(validation.examples)) == (6973, 500)


def test_benchmarks(data_dir: Path) -> None:
    gsm8k = load_benchmark("gsm8k", str(data_dir))
    hard = load_benchmark("gsm8k-hard", str(data_dir))
    svamp = load_benchmark("svamp", str(data_dir))
    assert [Path(loaded.source).name for loaded in (gsm8k, hard, svamp)] == ["gsm8k_test.jsonl", "gsm8k_hard.jsonl", "svamp.json"]
    assert [len(loaded.examples) for loaded in (gsm8k, hard, svamp)] == [1319, 1319, 1000]
    assert svamp.note == "all 1,000 problems of SVAMP"
    assert hard.examples[0].answer == "-9867630"
    values = [Decimal(canonical_number(example.answer)) for example in hard.examples]
    assert sum(value != int(value) for value in values) == 303
    aug = load_examples(str(data_dir / "gsm8k_aug_test.txt"), "test", cot_type="equation")
    assert [(example.question, example.answer) for example in gsm8k.examples] == [
        (example.question, example.answer) for example in aug.examples
    ]


def test_little_of_a_gsm8k_batch_is_padding(data_dir: Path) -> None:
    """In characters, of which each example's parts have about as many relative to each other as in tokens."""
    examples = train_validation(str(data_dir), cot_type="equation")[0].examples
    parts = [(len(example.question), len(" ".join(example.steps)), len(example.answer)) for example in examples]
    lengths = Lengths(*np.array(parts).T)
    shuffled = np.random.default_rng(0).permutation(len(examples))
    assert padding_share(lengths, LengthSortedSampler(lengths, 32, seed=0).order(0), 32) < 0.1
    assert padding_share(lengths, shuffled, 32) > 0.4
