"""`kava configs`."""

from dataclasses import dataclass

from kava.commands.options import Positional


@dataclass
class Configs:
    """List the available configurations and suites, show one, or copy some here to edit."""

    names: Positional[tuple[str, ...]] = ()
    """Configurations or suites to show or copy (names or files); none: list all."""
    copy: bool = False
    """Copy them, and the files they extend, to configs/ or suites/ in the working directory; existing files are kept."""

    def run(self) -> None:
        from kava.tools.configurations import copy, list_all, path_of, text_of

        paths = [path_of(name) for name in self.names]
        if self.copy:
            copy(paths)
        elif paths:
            for path in paths:
                print(f"# {path}\n{text_of(path)}", end="")
        else:
            list_all()
