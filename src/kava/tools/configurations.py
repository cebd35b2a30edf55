"""The shipped configurations and suites: list, show, compare, export and copy them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from kava.config import CONFIG_DIR, Config, config_path, load_config
from kava.config.differences import differences, flatten
from kava.config.files import EXTENDS, read_sections
from kava.config.strict_yaml import load_yaml
from kava.errors import UserError
from kava.experiment.suite import SUITE_DIR
from kava.report.reference import load_reference
from kava.report.table import Cell, Table, settings_table, show
from kava.results import write_text
from kava.runtime.shipped import find, listed, shipped
from kava.runtime.text import read_text


def path_of(name: str) -> Path:
    """Return the file of a suite or configuration.

    Raises:
        UserError: it is neither.
    """
    suite = find(SUITE_DIR, name) if name in {path.stem for path in listed(SUITE_DIR)} else None
    return suite or config_path(name)


def list_all() -> None:
    """Print the names of all configurations and suites."""
    list_configs(verbose=False)
    print(f"ablations: {', '.join(path.stem for path in listed(f'{CONFIG_DIR}/ablations'))}   (--config ablations/NAME)")
    print(f"suites: {', '.join(path.stem for path in listed(SUITE_DIR))}   (kava reproduce NAME)")
    print("kava configs NAME shows one, --copy NAME puts a copy here; every setting: docs/configuration.md, kava train --help")


def list_configs(verbose: bool) -> None:
    """Print the configurations with their distinguishing settings; `verbose`: with every setting that their files contain."""
    console = Console(highlight=False)
    configs = _shipped_configs()
    if not verbose:
        reference = load_reference()
        rows = []
        for name, config in configs.items():
            loss = config.loss
            model, data = reference.model_label(config.model.name), reference.dataset_label(config.dataset.name)
            figures = (f"{config.training.learning_rate:g}", f"{loss.alpha1_codi:g}", f"{loss.alpha2_kv:g}")
            rows.append([Cell(text) for text in (name, config.method, model, data, *figures, loss.kv_loss_type)])
        show([Table("configs", "", "", ["config", "method", "model", "data", "lr", "α1", "α2", "KV loss"], rows)], console)
        return
    for name, config in configs.items():
        stated = flatten(config.model_dump(mode="json", by_alias=True, exclude_unset=True))
        show([settings_table(name, {key: [value] for key, value in stated.items()}, ["value"])], console)


def compare(names: Sequence[str]) -> None:
    """Print the settings that differ between configurations.

    Raises:
        UserError: there are fewer than two names, or a configuration cannot be found.
    """
    if len(names) < 2:
        raise UserError("--compare needs at least two configurations, such as --compare llama1b_aug llama3b_aug")
    contents: list[dict[str, Any]] = [load_config(config_path(name)).to_dict() for name in names]
    found = differences(contents)
    if not found:
        print(f"{' and '.join(names)} do not differ")
        return
    show([settings_table("what differs", found, names)], Console(highlight=False))


def export(directory: Path, kind: str) -> None:
    """Write every configuration to a directory, with all defaults filled in; `kind` is yaml or json."""
    for name, config in _shipped_configs().items():
        content = config.to_dict()
        if kind == "json":
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        else:
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        write_text(directory / f"{name}.{kind}", text)
        print(directory / f"{name}.{kind}")


def copy(paths: Sequence[Path]) -> None:
    """Copy files, and those that they extend or take the runs of, to configs/ or suites/ in the working directory; existing files are kept.

    Raises:
        UserError: no file was given, one cannot be read, or a copy would not find the file that it extends. Nothing is copied then.
    """
    if not paths:
        raise UserError("say which configurations to copy: kava configs --copy llama1b_aug")
    left, copies = [path.resolve() for path in paths], dict[Path, tuple[Path, str]]()
    while left:
        path = left.pop(0)
        if path in copies:
            continue  # two files may extend it, and two suites name each other
        target, text = copies[path] = _target(path), text_of(path)
        if target.parts[0] == SUITE_DIR:
            if owner := (load_yaml(text) or {}).get("runs_of"):
                left.append(path.with_name(f"{owner}{path.suffix}"))
            continue
        read_sections(path)
        base = (load_yaml(text) or {}).get(EXTENDS)
        if base is None or Path(base).is_absolute():
            continue
        left.append((path.parent / base).resolve())
        if (target.parent / base).resolve() != _target(left[-1]).resolve():
            raise UserError(f"{path} extends '{base}', which its copy {target} would not find; copy both by hand")
    for target, text in copies.values():
        if target.exists():
            print(f"kept: {target}")
            continue
        write_text(target, text)
        print(f"copied: {target}")


def text_of(path: Path) -> str:
    """Return the text of a suite or configuration.

    Raises:
        UserError: it cannot be read.
    """
    return read_text(path, "configuration file", "name another one: kava configs lists them")


def _target(path: Path) -> Path:
    """Return where a file is copied to: a shipped one keeps its place in the folder."""
    folder = SUITE_DIR if path.is_relative_to(shipped(SUITE_DIR)) else CONFIG_DIR
    return Path(folder) / (path.relative_to(shipped(folder)) if path.is_relative_to(shipped(folder)) else path.name)


def _shipped_configs() -> dict[str, Config]:
    return {path.stem: load_config(path) for path in listed(CONFIG_DIR)}
