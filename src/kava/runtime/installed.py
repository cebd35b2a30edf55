"""Installed packages against those that kava needs, from their metadata; nothing is imported."""

import sys
from importlib import metadata
from pathlib import Path

from kava.errors import UserError

# What pip calls it; the name kava is another project's on PyPI.
DISTRIBUTION = "kava-latent"
# transformers imports them where they are there, and ends in an OSError where they belong to another torch. kava uses neither.
BUILT_FOR_ONE_TORCH = ("torchvision", "torchaudio")
# Without these in their ranges nothing works, whatever the command.
NEEDED = ("torch", "transformers", "peft")


def declared() -> tuple[str, list[str]]:
    """`requires-python` and the dependencies: of the checkout's pyproject.toml, else of the installed package.

    Raises:
        PackageNotFoundError: it runs from a bare directory of sources.
    """
    pyproject = Path(__file__).parents[3] / "pyproject.toml"
    if sys.version_info >= (3, 11) and pyproject.is_file():
        import tomllib

        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        return project["requires-python"], project["dependencies"]
    return metadata.metadata(DISTRIBUTION)["Requires-Python"], metadata.requires(DISTRIBUTION) or []


def version(name: str) -> str | None:
    """The installed version of a package; None where it is absent."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def foreign_packages() -> str | None:
    """A sentence about torchvision or torchaudio built for another torch, with the cure; None if there is no problem."""
    from packaging.requirements import Requirement

    torch = version("torch")
    for name in BUILT_FOR_ONE_TORCH:
        own = version(name)
        for line in (metadata.requires(name) or []) if own else []:
            wanted = Requirement(line)
            applies = wanted.name == "torch" and (wanted.marker is None or wanted.marker.evaluate({"extra": ""}))
            if applies and torch and not wanted.specifier.contains(torch, prereleases=True):
                return (
                    f"{name} {own} was built for torch {str(wanted.specifier).lstrip('=')}, but torch {torch} is installed, so that "
                    "transformers cannot be imported; kava uses neither: pip uninstall -y torchvision torchaudio"
                )
    return None


def refuse_unusable_packages() -> None:
    """Refuse packages that would end in a screenful of another library's errors.

    Raises:
        UserError: a needed package is out of its range, or torchvision or torchaudio belongs to another torch.
    """
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in declared()[1]]
    except metadata.PackageNotFoundError:
        wanted = []
    for requirement in wanted:
        found = version(requirement.name) if requirement.name in NEEDED else None
        if found and not requirement.specifier.contains(found, prereleases=True):
            need = f"{requirement.name}{requirement.specifier}"
            raise UserError(f"{requirement.name} {found} is installed, but kava needs {need}: pip install '{need}'")
    if problem := foreign_packages():
        raise UserError(problem)
