"""Files of configs/: the working directory comes before the package."""

from pathlib import Path

import pytest

from kava.runtime.shipped import find, listed, shipped


def test_a_name_and_a_path_lead_to_the_shipped_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = shipped("configs") / "mini.yaml"
    assert expected.is_file()
    assert find("configs", "mini") == find("configs", "mini.yaml") == find("configs", "configs/mini.yaml") == expected
    assert expected in listed("configs")


def test_a_file_of_one_s_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("configs", "mini.yaml")
    own.parent.mkdir()
    own.write_text("")
    Path("configs", "aaa.yaml").write_text("")
    assert find("configs", "mini") == find("configs", "configs/mini.yaml") == own
    names = [path.name for path in listed("configs")]
    assert own in listed("configs")
    assert names == sorted(set(names))
    assert names[0] == "aaa.yaml"


@pytest.mark.parametrize("name", ["nowhere", "", "x" * 300, "nul\0byte", "configs"])
def test_what_is_nowhere_is_none(name: str) -> None:
    assert find("configs", name) is None
