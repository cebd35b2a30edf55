"""Configurations of a data set directory (``main``, ``socratic``): those listed in its README, else its subfolders."""

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.config.strict_yaml import YAML_ERRORS, load_yaml
from kava.errors import UserError
from kava.runtime.text import ENCODING

# Used if a data set has several and none is requested: GSM8K's main one, and the hub's name for an unnamed configuration.
PREFERRED = ("main", "default")
README = "README.md"
_HEADER = re.compile(r"---\s*\n(.*?)\n---\s*(\n|$)", re.DOTALL)


class NoSuchConfigurationError(UserError):
    """The data set exists, but the requested configuration does not; the message lists the existing ones."""


@dataclass(frozen=True)
class Configuration:
    """A named part of a data set: files that match `patterns` (per split), else a `folder`, else files with the name as a word."""

    name: str
    patterns: dict[str, tuple[str, ...]]
    folder: bool = False

    def holds(self, file: str) -> bool:
        """Return whether a file (relative path with "/") belongs to it; a file outside the folders belongs to all of them."""
        if self.patterns:
            return any(fnmatch.fnmatch(file, pattern) for patterns in self.patterns.values() for pattern in patterns)
        if self.folder and "/" not in file:
            return True
        return file.split("/")[0] == self.name or self.name.lower() in re.split(r"[^a-z0-9]+", Path(file).stem.lower())


def configurations(directory: Path) -> dict[str, Configuration]:
    """Return the configurations that the README of a directory lists (the convention of the hub), else one for each subfolder."""
    listed = [found for entry in _listed(directory) if (found := _read(entry)) is not None]
    if not listed:
        listed = [
            Configuration(path.name, {}, folder=True)
            for path in sorted(directory.glob("*/"))
            if not path.name.startswith(".") and path.is_dir()
        ]
    return {configuration.name: configuration for configuration in listed}


def chosen(directory: Path, name: str | None) -> Configuration | None:
    """Return the configuration whose files are used: the named one, else a `PREFERRED` one of several; None for all files.

    A name that is not listed gives a configuration of the files that have this name as a word.
    """
    known = configurations(directory)
    name = name or (next((each for each in PREFERRED if each in known), None) if len(known) > 1 else None)
    if name is None:
        return None
    # Without a README that lists the configurations, a file name may contain the name: mgsm_zh.tsv.
    return known.get(name) or Configuration(name, {})


def is_whole(directory: Path, name: str | None) -> bool:
    """Return whether a downloaded directory has all files that its README lists for a configuration."""
    listed = configurations(directory)
    found = listed.get(name or preferred(list(listed)) or "")
    return (
        found is not None
        and bool(found.patterns)
        and all(any(next(directory.glob(pattern), None) for pattern in patterns) for patterns in found.patterns.values())
    )


def preferred(names: list[str]) -> str | None:
    """Return the configuration to use if none is named: main, else default, else the only one; None if this is ambiguous."""
    return next((name for name in PREFERRED if name in names), names[0] if len(names) == 1 else None)


def _listed(directory: Path) -> list[Any]:
    try:
        header = _HEADER.match((directory / README).read_text(encoding=ENCODING))
        content = load_yaml(header[1]) if header else None
    except (OSError, *YAML_ERRORS):
        return []
    listed = content.get("configs") if isinstance(content, dict) else None
    return listed if isinstance(listed, list) else []


def _read(entry: Any) -> Configuration | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("config_name"), str):
        return None
    files = entry.get("data_files", [])
    listed = files if isinstance(files, list) else [files]
    patterns: dict[str, tuple[str, ...]] = {}
    for item in listed:
        split, path = (str(item.get("split", "train")), item.get("path", [])) if isinstance(item, dict) else ("train", item)
        patterns[split] = tuple(map(str, path if isinstance(path, list) else [path]))
    return Configuration(entry["config_name"], patterns)
