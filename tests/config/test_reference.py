"""The reference of all settings: written from the schema, complete, and the page up to date."""

from pathlib import Path

import yaml

from kava.config import Config, build_config
from kava.config.differences import flatten
from kava.config.reference import as_help, as_markdown, settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_every_setting_is_described() -> None:
    listed = {setting.key: setting for setting in settings()}
    defaults = flatten(Config().to_dict() | {"evaluation": Config().to_dict()["evaluation"] | {"datasets": "one setting"}})
    assert listed.keys() == defaults.keys()
    assert not [key for key, setting in listed.items() if len(setting.description) < 4]
    assert len(listed) > 80


def test_the_defaults_are_those_of_an_empty_file() -> None:
    stated = {setting.key: yaml.safe_load(setting.default) for setting in settings()}
    assert build_config({}, "a test", stated).to_dict() == Config().to_dict()


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == as_markdown(), "python -m kava.config.reference > docs/configuration.md"


def test_help_names_every_setting_with_its_default() -> None:
    text = as_help()
    assert all(f"--{setting.key}  {setting.kind} (default: {setting.default})" in text for setting in settings())
