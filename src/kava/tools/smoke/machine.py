"""Checks of Python, the installed packages and the model hub; none of them imports torch or transformers."""

import platform

from kava.runtime.hub import unreachable
from kava.runtime.installed import NEEDED, declared, foreign_packages, version
from kava.tools.smoke.lab import CheckFailedError, Information, Lab

OPTIONAL = ("flash-attn", "bitsandbytes", "wandb", "gguf")


def python_version(_: Lab) -> str:
    """Check the version of Python against `requires-python`."""
    from packaging.specifiers import SpecifierSet

    wanted, _requirements = declared()
    if not SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        raise CheckFailedError(f"Python {platform.python_version()}, kava needs {wanted}")
    return f"{platform.python_version()}, needed {wanted}"


def packages(_: Lab) -> str:
    """Check the installed versions of packages against the declared ranges."""
    from packaging.requirements import Requirement

    problems, versions = [], {}
    for requirement in map(Requirement, declared()[1]):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = versions[requirement.name] = version(requirement.name)
        if found is None:
            problems.append(f"{requirement.name} is not installed")
        elif not requirement.specifier.contains(found, prereleases=True):
            problems.append(f"{requirement.name} {found} is not {requirement.specifier}")
    if foreign := foreign_packages():
        problems.append(foreign)
    if problems:
        raise CheckFailedError("; ".join(problems))
    shown = ", ".join(f"{name} {versions[name]}" for name in NEEDED)
    return f"all {len(versions)} in their ranges ({shown})"


def optional_packages(_: Lab) -> Information:
    """Report which optional packages are installed."""
    return Information(", ".join(f"{name} {version(name) or 'absent'}" for name in OPTIONAL))


def hub_access(_: Lab) -> Information:
    """Report whether models and data sets can be downloaded from this machine."""
    from huggingface_hub import constants

    reason = unreachable()
    if reason is None:
        return Information(f"{constants.ENDPOINT} can be reached")
    if constants.is_offline_mode():
        return Information(f"{reason}: only what is in {constants.HF_HOME} and local paths")
    return Information(
        f"{reason}: set HF_ENDPOINT to a mirror (https://hf-mirror.com), download beforehand into HF_HOME, "
        "or give local paths in model.name and dataset.name"
    )
