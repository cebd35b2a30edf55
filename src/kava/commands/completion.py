"""`kava completion`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import tyro

from kava.commands.options import Positional


@dataclass
class Completion:
    """Print a completion script for commands and options; the shell loads it once at startup.

    eval "$(kava completion bash)"      in ~/.bashrc (zsh: in ~/.zshrc; fish: kava completion fish | source)
    """

    shell: Positional[Literal["bash", "zsh", "fish"]] = "bash"
    """Shell to print the script for."""

    commands: ClassVar[dict[str, tuple[str, str, str]]] = {}
    # Set by kava.cli to its table of commands.

    def run(self) -> None:
        from importlib import import_module

        classes = {name: getattr(import_module(module), attribute) for name, (module, attribute, _) in self.commands.items()}
        tyro.extras.subcommand_cli_from_dict(
            classes, prog="kava", args=["--tyro-write-completion", self.shell, "-"], config=(), use_underscores=True
        )
