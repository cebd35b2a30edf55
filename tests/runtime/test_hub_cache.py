"""A shared model library that lies right under HF_HOME, as the guide exports it; tests/system/test_guide.py trains from one."""

from pathlib import Path

import pytest

from kava.runtime.hub_cache import use_shared_library

MODEL = "models--meta-llama--Llama-3.2-1B-Instruct"


def library(directory: Path) -> str:
    (directory / MODEL / "snapshots").mkdir(parents=True)
    return str(directory)


@pytest.mark.parametrize("variables", [("HF_HOME",), ("TRANSFORMERS_CACHE",), ("HF_HOME", "TRANSFORMERS_CACHE", "HF_DATASETS_CACHE")])
def test_models_right_under_the_guides_variables_are_found(tmp_path: Path, variables: tuple[str, ...]) -> None:
    environment = dict.fromkeys(variables, library(tmp_path))
    use_shared_library(environment)
    assert environment == dict.fromkeys((*variables, "HF_HUB_CACHE"), str(tmp_path))


def test_where_the_libraries_look_by_themselves_nothing_is_changed(tmp_path: Path) -> None:
    library(tmp_path)
    library(tmp_path / "hub")
    (tmp_path / "empty").mkdir()
    for environment in (
        {"HF_HOME": str(tmp_path)},
        {"HF_HOME": str(tmp_path / "empty")},
        {"HF_HOME": str(tmp_path / "nowhere")},
        {"TRANSFORMERS_CACHE": str(tmp_path), "HF_HUB_CACHE": "/elsewhere"},
        {},
    ):
        before = dict(environment)
        use_shared_library(environment)
        assert environment == before
