"""`kava model-configs`, `python model_configs.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from kava.config import Config


@dataclass
class ModelConfigs:
    """List, compare and export the configurations in configs/."""

    list_: Annotated[bool, tyro.conf.arg(name="list"), tyro.conf.FlagCreatePairsOff] = False
    """List all configurations with their distinguishing settings."""
    verbose: bool = False
    """With --list: show every setting that the files contain; all others have their defaults."""
    compare: tuple[str, ...] = ()
    """Two or more configurations (names or files): print only the settings that differ."""
    export: str | None = None
    """Directory to export every configuration to, with all defaults filled in."""
    format: Literal["yaml", "json"] = "yaml"
    """With --export: the format of the files."""

    def run(self) -> None:
        from kava.errors import UserError

        if not (self.list_ or self.compare or self.export):
            raise UserError("nothing to do: give --list, --compare A B or --export DIR")
        if self.list_:
            list_configs(self.verbose)
        if self.compare:
            _compare(self.compare)
        if self.export:
            _export(Path(self.export), self.format)


def _shipped() -> "dict[str, Config]":
    from kava.config import CONFIG_DIR, load_config
    from kava.runtime.shipped import listed

    paths = listed(CONFIG_DIR)
    return {path.stem: load_config(path) for path in paths}


def list_configs(verbose: bool) -> None:
    """Print the configurations with their distinguishing settings; `verbose`: with every setting that their files contain."""
    from rich.console import Console

    from kava.config.differences import flatten
    from kava.report.reference import load_reference
    from kava.report.table import Cell, Table, settings_table, show

    console = Console(highlight=False)
    configs = _shipped()
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


def _compare(names: tuple[str, ...]) -> None:
    from rich.console import Console

    from kava.config import config_path, load_config
    from kava.config.differences import differences
    from kava.errors import UserError
    from kava.report.table import settings_table, show

    if len(names) < 2:
        raise UserError("--compare needs at least two configurations, such as --compare llama1b_aug llama3b_aug")
    contents: list[dict[str, Any]] = [load_config(config_path(name)).to_dict() for name in names]
    found = differences(contents)
    if not found:
        print(f"{' and '.join(names)} do not differ")
        return
    show([settings_table("what differs", found, names)], Console(highlight=False))


def _export(directory: Path, kind: str) -> None:
    import json

    import yaml

    from kava.results import write_text

    for name, config in _shipped().items():
        content = config.to_dict()
        if kind == "json":
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        else:
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        write_text(directory / f"{name}.{kind}", text)
        print(directory / f"{name}.{kind}")
