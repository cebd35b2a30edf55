"""Checks of Python and the installed packages; they need none of them."""

import platform
import sys
from importlib import metadata
from pathlib import Path

from kava.tools.smoke.check import CheckFailedError, Information
from kava.tools.smoke.lab import Lab

# What pip calls it; the name kava is another project's on PyPI.
DISTRIBUTION = "kava-latent"
OPTIONAL = ("flash-attn", "bitsandbytes", "wandb", "gguf")


def python_version(_: Lab) -> str:
    """Python against `requires-python`."""
    from packaging.specifiers import SpecifierSet

    wanted, _requirements = declared()
    if not SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        raise CheckFailedError(f"Python {platform.python_version()}, kava needs {wanted}")
    return f"{platform.python_version()}, needed {wanted}"


def packages(_: Lab) -> str:
    """Installed versions against the declared ranges."""
    from packaging.requirements import Requirement

    problems, versions = [], {}
    for line in declared()[1]:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            versions[requirement.name] = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(versions[requirement.name], prereleases=True):
            problems.append(f"{requirement.name} {versions[requirement.name]} is not {requirement.specifier}")
    if problems:
        raise CheckFailedError("; ".join(problems))
    shown = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft") if name in versions)
    return f"all {len(versions)} in their ranges ({shown})"


def declared() -> tuple[str, list[str]]:
    """`requires-python` and the dependencies: of the checkout's pyproject.toml, else of the installed package."""
    pyproject = Path(__file__).parents[4] / "pyproject.toml"
    if sys.version_info >= (3, 11) and pyproject.is_file():
        import tomllib

        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        return project["requires-python"], project["dependencies"]
    return metadata.metadata(DISTRIBUTION)["Requires-Python"], metadata.requires(DISTRIBUTION) or []


def optional_packages(_: Lab) -> Information:
    """What some options need, so that its absence is seen."""
    return Information(", ".join(f"{name} {_installed(name) or 'absent'}" for name in OPTIONAL))


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
