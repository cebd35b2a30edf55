"""`kava configs`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass
class Configs:
    """List the available configurations and suites, show one, or copy some here to edit."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Configurations or suites to show or copy (names or files); none: list all."""
    copy: bool = False
    """Copy them, and the files they extend, to configs/ or suites/ in the working directory; existing files are kept."""

    def run(self) -> None:
        paths = [_path(name) for name in self.names]
        if self.copy:
            _copy(paths)
        elif paths:
            for path in paths:
                print(f"# {path}\n{path.read_text(encoding='utf-8')}", end="")
        else:
            _list()


def _path(name: str) -> Path:
    """Return the file of a suite or configuration.

    Raises:
        UserError: it is neither.
    """
    from kava.config import config_path
    from kava.experiment.suite import SUITE_DIR
    from kava.runtime.shipped import find, listed

    suite = find(SUITE_DIR, name) if name in {path.stem for path in listed(SUITE_DIR)} else None
    return suite or config_path(name)


def _list() -> None:
    from kava.commands.model_configs import list_configs
    from kava.config import CONFIG_DIR
    from kava.experiment.suite import SUITE_DIR
    from kava.runtime.shipped import listed

    list_configs(verbose=False)
    print(f"ablations: {', '.join(path.stem for path in listed(f'{CONFIG_DIR}/ablations'))}   (--config ablations/NAME)")
    print(f"suites: {', '.join(path.stem for path in listed(SUITE_DIR))}   (kava reproduce NAME)")
    print("kava configs NAME shows one, --copy NAME puts a copy here; every setting: docs/configuration.md, kava train --help")


def _copy(paths: list[Path]) -> None:
    from kava.config import CONFIG_DIR
    from kava.config.files import EXTENDS
    from kava.config.strict_yaml import load_yaml
    from kava.errors import UserError
    from kava.experiment.suite import SUITE_DIR
    from kava.results import write_text
    from kava.runtime.shipped import shipped

    if not paths:
        raise UserError("say which configurations to copy: kava configs --copy llama1b_aug")
    left = [path.resolve() for path in paths]
    while left:
        path = left.pop(0)
        folder = SUITE_DIR if path.is_relative_to(shipped(SUITE_DIR)) else CONFIG_DIR
        target = Path(folder) / (path.relative_to(shipped(folder)) if path.is_relative_to(shipped(folder)) else path.name)
        if isinstance(base := (load_yaml(path.read_text(encoding="utf-8")) or {}).get(EXTENDS), str):
            left.append((path.parent / base).resolve())
        if target.exists():
            print(f"kept: {target}")
            continue
        write_text(target, path.read_text(encoding="utf-8"))
        print(f"copied: {target}")
