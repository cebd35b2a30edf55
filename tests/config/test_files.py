"""`extends`: a configuration file that says only what differs from another, and the ablations that are written so."""

from pathlib import Path
from typing import Any

import pytest

from kava.config import load_config
from kava.config.differences import differences
from kava.config.files import merge
from kava.errors import UserError

ABLATIONS = Path(__file__).parents[2] / "configs" / "ablations"
BASE = ABLATIONS.parent / "llama1b_aug.yaml"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_nearest_file_wins_key_by_key(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "loss: {alpha1_codi: 3, alpha2_kv: 4}\nlatent: {num_tokens: 5}\n")
    write(tmp_path / "b" / "b.yaml", "extends: ../a.yaml\nloss: {alpha2_kv: 6}\n")
    config = load_config(write(tmp_path / "c.yaml", "extends: b/b.yaml\nlatent: {num_iterations: 2}\n"), {"loss.alpha1_codi": 7})
    assert (config.loss.alpha1_codi, config.loss.alpha2_kv, config.latent.num_tokens, config.latent.num_iterations) == (7, 6, 5, 2)


def test_lists_and_plain_values_are_replaced_whole() -> None:
    assert merge({"a": [1, 2], "b": {"c": 1}, "d": {"e": 1}}, {"a": [3], "b": None, "d": {"f": 2}}) == {
        "a": [3],
        "b": None,
        "d": {"e": 1, "f": 2},
    }


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("extends: gone.yaml", "gone.yaml does not exist"),
        ("extends: self.yaml", "leads back"),
        ("extends: other.yaml", "leads back"),
        ("extends: [a, b]", "must be the path"),
        ("extends: list.yaml", "list.yaml must hold sections"),
    ],
)
def test_what_cannot_be_extended_is_named(tmp_path: Path, text: str, part: str) -> None:
    write(tmp_path / "other.yaml", "extends: self.yaml")
    write(tmp_path / "list.yaml", "- 1")
    with pytest.raises(UserError, match=part):
        load_config(write(tmp_path / "self.yaml", text))


def changed_keys(path: Path) -> dict[str, Any]:
    return differences([load_config(BASE).to_dict(), load_config(path).to_dict()])


@pytest.mark.parametrize("path", sorted(ABLATIONS.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_ablation_changes_one_thing(path: Path) -> None:
    changed = changed_keys(path)
    assert len(changed) == (2 if path.stem == "full_fine_tuning" else 1), changed


def test_no_two_ablations_are_the_same_run() -> None:
    fingerprints = [load_config(path).fingerprint() for path in [BASE, *ABLATIONS.glob("*.yaml")]]
    assert len(set(fingerprints)) == len(fingerprints) > 20
