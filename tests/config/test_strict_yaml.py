"""What the package's only YAML reader refuses and what it does not read as YAML 1.1 would."""

from pathlib import Path

import pytest
import yaml

from kava.config import Config, load_config
from kava.config.files import read_sections
from kava.config.strict_yaml import load_yaml
from kava.errors import UserError
from kava.results import read_mapping

SOURCE = Path(__file__).parents[2] / "src"
CONFIG = Path(__file__).parents[2] / "configs" / "llama3b_aug.yaml"


def test_a_section_appended_as_the_guide_prints_it_is_refused_with_both_lines_and_a_cure_that_works(tmp_path: Path) -> None:
    text = CONFIG.read_text(encoding="utf-8")
    path = tmp_path / "appended.yaml"
    path.write_text(f"{text}\ntraining:\n  batch_size: 64\n  gradient_accumulation_steps: 2\n", encoding="utf-8")
    lines = [number for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1) if line == "training:"]
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(caught.value) == (
        f"configuration file {path} is not valid YAML: 'training' is given twice, in lines {lines[0]} and {lines[1]}: "
        "move the lines of the second into the first"
    )
    # Both cures: the section's lines moved, and the keys that are then double left out once.
    moved = text.replace("training:\n", "training:\n  batch_size: 64\n  gradient_accumulation_steps: 2\n")
    path.write_text(moved, encoding="utf-8")
    with pytest.raises(UserError, match=r"'batch_size' is given twice, in lines \d+ and \d+: keep one of them"):
        load_config(path)
    kept = [line for line in text.split("\n") if not line.startswith(("  batch_size: 128", "  gradient_accumulation_steps: 1"))]
    path.write_text(
        "\n".join(kept).replace("training:\n", "training:\n  batch_size: 64\n  gradient_accumulation_steps: 2\n"), encoding="utf-8"
    )
    training = load_config(path).training
    assert (training.batch_size, training.gradient_accumulation_steps, training.learning_rate, training.epochs) == (64, 2, 2e-4, 5)


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "s: {a: 1, 'a': 2}", "- a: 1\n  a: 1", "s:\n  t:\n    a:\n    a: 1"])
def test_a_key_twice_is_refused_at_every_depth_and_in_every_file(tmp_path: Path, text: str) -> None:
    for path in (tmp_path / "c.yaml", tmp_path / "base.yaml"):
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"'a' is given twice, in lines \d and \d: keep one of them"):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(UserError, match="'a' is given twice"):
        read_mapping(tmp_path / "c.yaml", "suite", "correct it")
    (tmp_path / "c.yaml").write_text("extends: base.yaml", encoding="utf-8")
    with pytest.raises(UserError, match="base.yaml .* 'a' is given twice"):
        read_sections(tmp_path / "c.yaml")


def test_equal_keys_of_different_sections_and_merged_keys_are_no_double() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\nd: {<<: [*a, *b]}\n1: one\n'1': text"
    assert load_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("024", "024"), ("-024", "-024"), ("0", 0), ("-0", 0), ("20", 20), ("1_000", 1000), ("0x1F", 31), ("1:30", "1:30")),
        *(("1:30.5", "1:30.5"), ("1.5", 1.5), ("0.1", 0.1), (".5", 0.5), ("1.0e-4", 1e-4), (".inf", float("inf")), ("2.", 2.0)),
        *(("09", "09"), ("00.5", 0.5), ("no", False), ("~", None), ("12e4", "12e4")),
    ],
)
def test_numbers(text: str, value: object) -> None:
    assert load_yaml(text) == value
    assert type(load_yaml(text)) is type(value)


def test_leading_zeros_do_not_change_a_number(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("latent: {num_tokens: 024}\ntraining: {seed: 0042, weight_decay: 01}", encoding="utf-8")
    config = load_config(path, {"training.batch_size": "064"})
    assert (config.latent.num_tokens, config.training.seed, config.training.weight_decay) == (24, 42, 1.0)
    assert config.training.batch_size == 64


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    config = Config()
    for odd in ("024", "1:30", "no", "12e4", "0x1F"):
        config.model.name = odd
        assert load_yaml(yaml.safe_dump(config.to_dict()))["model"]["name"] == odd


def test_half_a_character_is_refused_and_two_halves_are_one() -> None:
    assert load_yaml(r'{"a \ud83d\ude00": "\udb05\udf66"}') == {"a \U0001f600": "\U000d1766"}
    for text in (r'{"a": 1,' + "\n" + r' "b": "x\ud800"}', "a: 1\n" + r'"\udfffx": 2'):
        with pytest.raises(yaml.YAMLError, match="half of a character.* in line 2"):
            load_yaml(text)


def test_nothing_else_in_the_package_reads_yaml() -> None:
    readers = [
        path.name for path in SOURCE.rglob("*.py") if "yaml.safe_load" in (text := path.read_text(encoding="utf-8")) or "yaml.load" in text
    ]
    assert readers == ["strict_yaml.py"]
