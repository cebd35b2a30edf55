"""`kava model-configs`, `python model_configs.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


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
        from kava.tools.configurations import compare, export, list_configs

        if not (self.list_ or self.compare or self.export):
            raise UserError("nothing to do: give --list, --compare A B or --export DIR")
        if self.list_:
            list_configs(self.verbose)
        if self.compare:
            compare(self.compare)
        if self.export:
            export(Path(self.export), self.format)
