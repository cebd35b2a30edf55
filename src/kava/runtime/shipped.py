"""Find files of configs/ and suites/: first in the working directory, then in those shipped with the package.

find("configs", "llama1b_aug")                ->  configs/llama1b_aug.yaml, here or in the package
find("configs", "configs/llama1b_aug.yaml")   ->  the same, as the guide writes it
"""

import os
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped(folder: str) -> Path:
    """Return the folder in the installed package, or in the checkout."""
    installed = PACKAGE / "_shipped"
    return (installed if installed.is_dir() else PACKAGE.parents[1]) / folder


def find(folder: str, name: str) -> Path | None:
    """Return the file for a path or a bare name in `folder`; None if there is none."""
    inside = Path(name).relative_to(folder) if Path(name).parts[:1] == (folder,) else Path(name)
    for candidate in (Path(name), Path(folder, f"{name}.yaml"), shipped(folder) / inside, shipped(folder) / f"{name}.yaml"):
        if os.path.isfile(candidate):  # Path.is_file raises on names that no file system accepts
            return candidate
    return None


def listed(folder: str) -> Sequence[Path]:
    """Return the YAML files of `folder`, sorted by name; files in the working directory replace those of the package."""
    by_name = {path.name: path for place in (shipped(folder), Path(folder)) for path in place.glob("*.yaml")}
    return [by_name[name] for name in sorted(by_name)]
