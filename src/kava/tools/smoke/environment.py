"""Checks of Python and the installed packages; they need none of them."""

import platform
from importlib import metadata

from kava.runtime.installed import declared, foreign_packages, version
from kava.tools.smoke.check import CheckFailedError, Information
from kava.tools.smoke.lab import Lab

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
    if foreign := foreign_packages():
        problems.append(foreign)
    if problems:
        raise CheckFailedError("; ".join(problems))
    shown = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft") if name in versions)
    return f"all {len(versions)} in their ranges ({shown})"


def optional_packages(_: Lab) -> Information:
    """What some options need, so that its absence is seen."""
    return Information(", ".join(f"{name} {version(name) or 'absent'}" for name in OPTIONAL))
