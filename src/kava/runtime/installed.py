"""Check the installed packages against kava's requirements, from their metadata; nothing is imported."""

import sys
from importlib import metadata
from pathlib import Path

from kava.errors import UserError

# Name on PyPI, where `kava` is another project.
DISTRIBUTION = "kava-latent"
# transformers imports them if installed, and fails with an OSError if they were built for another torch. kava uses neither.
BUILT_FOR_ONE_TORCH = ("torchvision", "torchaudio")
# No command works unless the versions of these are in their required ranges.
NEEDED = ("torch", "transformers", "peft")


def declared() -> tuple[str, list[str]]:
    """Return `requires-python` and the dependencies, from the checkout's pyproject.toml or else from the installed package.

    Raises:
        PackageNotFoundError: kava runs from a bare source directory.
    """
    pyproject = Path(__file__).parents[3] / "pyproject.toml"
    if sys.version_info >= (3, 11) and pyproject.is_file():
        import tomllib

        project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
        # A copy inside another project (pip install --target) has that project's file above it.
        if project.get("name") == DISTRIBUTION:
            return project["requires-python"], project["dependencies"]
    return metadata.metadata(DISTRIBUTION)["Requires-Python"], metadata.requires(DISTRIBUTION) or []


def version(name: str) -> str | None:
    """Return the installed version of a package; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def foreign_packages() -> str | None:
    """Return a sentence about torchvision or torchaudio built for another torch and how to fix it; None if there is no problem."""
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
    """Refuse to start with packages that would later fail with long error messages of other libraries.

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
