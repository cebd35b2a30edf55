"""`kava completion`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro


@dataclass
class Completion:
    """Print shell completion of commands and options; the shell reads it once when it starts.

    eval "$(kava completion bash)"      in ~/.bashrc (zsh: in ~/.zshrc; fish: kava completion fish | source)
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional] = "bash"
    """The shell to print it for."""

    commands: ClassVar[dict[str, tuple[str, str, str]]] = {}
    # The table of kava.cli, which hands it over.

    def run(self) -> None:
        from importlib import import_module

        classes = {name: getattr(import_module(module), attribute) for name, (module, attribute, _) in self.commands.items()}
        tyro.extras.subcommand_cli_from_dict(
            classes, prog="kava", args=["--tyro-write-completion", self.shell, "-"], config=(), use_underscores=True
        )
