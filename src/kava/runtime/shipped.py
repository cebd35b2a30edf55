"""configs/ and suites/: first those of the working directory, then those shipped with the package.

find("configs", "llama1b_aug")                ->  configs/llama1b_aug.yaml, here or in the package
find("configs", "configs/llama1b_aug.yaml")   ->  the same, as the guide writes it
"""

import os
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped(folder: str) -> Path:
    """The folder in the installed package; in a checkout, that of the checkout."""
    installed = PACKAGE / "_shipped"
    return (installed if installed.is_dir() else PACKAGE.parents[1]) / folder


def find(folder: str, name: str) -> Path | None:
    """The file that a user means by a path or a bare name in `folder`; None where there is none."""
    inside = Path(name).relative_to(folder) if Path(name).parts[:1] == (folder,) else Path(name)
    for candidate in (Path(name), Path(folder, f"{name}.yaml"), shipped(folder) / inside, shipped(folder) / f"{name}.yaml"):
        if os.path.isfile(candidate):  # Path.is_file raises on names that no file system takes
            return candidate
    return None


def listed(folder: str) -> Sequence[Path]:
    """Every YAML file of `folder` by name; the working directory's replace the package's."""
    by_name = {path.name: path for place in (shipped(folder), Path(folder)) for path in place.glob("*.yaml")}
    return [by_name[name] for name in sorted(by_name)]
