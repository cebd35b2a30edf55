"""Configurations of a data set's directory: those of its README, else its folders."""

from pathlib import Path

from kava.data.sources.configurations import Configuration, chosen, configurations, is_whole, preferred

README = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
- config_name: socratic
  data_files: socratic/*
- 3
---
# A data set
"""


def test_the_readme_s_list_comes_first(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "other").mkdir()
    found = configurations(tmp_path)
    assert found["main"].patterns == {"train": ("main/train-*",), "test": ("main/test-*",)}
    assert found["socratic"].patterns == {"train": ("socratic/*",)}
    assert list(found) == ["main", "socratic"]
    assert found["main"].holds("main/test-1.parquet")
    assert not found["main"].holds("socratic/a.jsonl")
    assert chosen(tmp_path, None) == found["main"]
    assert chosen(tmp_path, "socratic") == found["socratic"]


def test_without_a_list_folders_are_the_configurations(tmp_path: Path) -> None:
    for name in ("en", "zh", ".cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n")
    found = configurations(tmp_path)
    assert list(found) == ["en", "zh"]
    assert found["en"].holds("en/train.jsonl")
    assert found["en"].holds("shared.jsonl")
    assert not found["en"].holds("zh/train.jsonl")
    assert chosen(tmp_path, None) is None
    assert chosen(tmp_path, "de") == Configuration("de", {})


def test_a_name_is_a_word_of_a_file_s_name() -> None:
    german = Configuration("de", {})
    assert german.holds("mgsm_de.tsv")
    assert not german.holds("model.tsv")


def test_a_download_is_whole_when_every_listed_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "train-1").write_text("")
    assert not is_whole(tmp_path, None)
    (tmp_path / "main" / "test-1").write_text("")
    assert is_whole(tmp_path, None)
    assert not is_whole(tmp_path, "socratic")


def test_main_is_preferred_and_several_others_are_ambiguous() -> None:
    assert preferred(["a", "default", "main"]) == "main"
    assert preferred(["a", "default"]) == "default"
    assert preferred(["a"]) == "a"
    assert preferred(["a", "b"]) is None
