"""The shipped configurations as they are listed, compared, exported and copied."""

from pathlib import Path

import pytest

from kava.commands.configs import Configs
from kava.config import config_path, load_config
from kava.errors import UserError
from kava.experiment.suite import read_suite
from kava.runtime.shipped import shipped
from kava.tools.configurations import compare, copy, export, list_all, list_configs, path_of

NAMES = sorted(path.stem for path in shipped("configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_configuration_ablation_and_suite_is_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    list_all()
    said = capsys.readouterr().out
    suites = [path.stem for path in shipped("suites").glob("*.yaml")]
    ablations = [path.stem for path in shipped("configs").glob("ablations/*.yaml")]
    assert [name for name in (*NAMES, *suites, *ablations) if name not in said] == []


def test_a_suite_and_a_configuration_are_found_by_name() -> None:
    assert path_of("demo") == shipped("suites") / "demo.yaml"
    assert path_of("mini") == shipped("configs") / "mini.yaml"
    with pytest.raises(UserError, match="configuration 'minni' is neither .*mini"):
        path_of("minni")


def test_what_differs_is_shown_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    compare(["llama1b_aug", "llama3b_aug"])
    said = capsys.readouterr().out
    assert "training.learning_rate" in said
    assert "rkv.eviction" not in said
    compare(["mini", "mini"])
    assert capsys.readouterr().out == "mini and mini do not differ\n"
    with pytest.raises(UserError, match="at least two"):
        compare(["mini"])


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_what_is_exported_loads_as_the_same_configuration(tmp_path: Path, kind: str) -> None:
    export(tmp_path / "out", kind)
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == NAMES
    for name in NAMES:
        assert load_config(tmp_path / "out" / f"{name}.{kind}") == load_config(config_path(name))


def test_a_copy_brings_what_it_extends_and_keeps_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = shipped("configs") / "ablations" / "latents_6.yaml"
    copy([original, shipped("suites") / "demo.yaml"])
    copied = tmp_path / "configs" / "ablations" / "latents_6.yaml"
    assert copied.read_bytes() == original.read_bytes()
    assert (tmp_path / "suites" / "demo.yaml").exists()
    assert load_config(copied) == load_config(original)
    base = next(path for path in (tmp_path / "configs").glob("*.yaml"))
    base.write_text("mine: true\n")
    capsys.readouterr()
    copy([original])
    assert capsys.readouterr().out.splitlines() == ["kept: configs/ablations/latents_6.yaml", f"kept: configs/{base.name}"]
    assert base.read_text() == "mine: true\n"
    copy([shipped("suites") / "mini-table2.yaml"])
    assert read_suite("suites/mini-table2.yaml").runs_of == "mini-table1"
    assert (tmp_path / "suites" / "mini-table1.yaml").exists()
    with pytest.raises(UserError, match="say which configurations"):
        copy([])


def test_suites_that_name_each_other_are_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name, other in (("one", "two"), ("two", "one")):
        (theirs / f"{name}.yaml").write_text(f"runs_of: {other}\n")
    monkeypatch.setattr("kava.tools.configurations.shipped", lambda folder: theirs if folder == "suites" else tmp_path / folder)
    copy([theirs / "one.yaml"])
    assert sorted(path.name for path in (tmp_path / "suites").iterdir()) == ["one.yaml", "two.yaml"]


@pytest.mark.parametrize(("content", "message"), [
    (b"a: [1", "is not valid YAML"), (b"- a\n", "must hold sections .* not a list"), (b"# caf\xe9\n", "is not UTF-8"),
    (b"extends: 1\n", "extends must be the path"), (b"extends: mine.yaml\n", "leads back to a file that extends it"),
    (b"extends: other.yaml\n", "other.yaml does not exist"),
    (b"extends: ../base.yaml\n", "extends '../base.yaml', which its copy .* would not find"),
])  # fmt: skip
def test_what_cannot_be_copied_is_refused_and_nothing_is_written(tmp_path: Path, content: bytes, message: str) -> None:
    mine = tmp_path / "own" / "sub" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(content)
    (tmp_path / "own" / "base.yaml").write_text("training: {learning_rate: 0.5}\n")
    with pytest.raises(UserError, match=message):
        copy([path_of("mini"), mine])
    assert not (tmp_path / "configs").exists()


def test_a_file_of_ones_own_is_copied_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "base.yaml").write_text("training: {learning_rate: 0.5}\n")
    (tmp_path / "own" / "mine.yaml").write_text("extends: base.yaml\n")
    copy([tmp_path / "own" / "mine.yaml"])
    assert load_config(tmp_path / "configs" / "mine.yaml").training.learning_rate == 0.5


def test_a_file_that_is_not_utf8_is_named_when_it_is_shown(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(UserError, match=r"latin.yaml cannot be read \(byte 5 is not UTF-8\)"):
        Configs(names=("latin.yaml",)).run()


def test_a_file_of_the_working_directory_is_listed_in_place_of_the_shipped_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mini.yaml").write_text("training: {learning_rate: 0.00321}\n")
    list_configs(verbose=True)
    assert "0.00321" in capsys.readouterr().out
