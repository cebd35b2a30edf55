"""Read configuration files as plain dictionaries; a file with `extends` contains only the differences from another file.

extends: ../llama1b_aug.yaml
loss: {use_projection: false}
"""

from pathlib import Path
from typing import Any

from kava.config.strict_yaml import YAML_ERRORS, load_yaml
from kava.errors import UserError
from kava.methods import METHODS
from kava.runtime.text import read_text

EXTENDS = "extends"
# Methods that reason in text or not at all: they do not use M (`latent.num_tokens`).
WITHOUT_LATENTS = tuple(name for name, method in METHODS.items() if not method.uses_latents)


def read_sections(path: str | Path, inside: tuple[Path, ...] = ()) -> dict[Any, Any]:
    """Return the content of a configuration file, merged key by key over the file it extends (a path relative to its own folder).

    Args:
        path: the file.
        inside: the chain of files that extend this one, to detect cycles.

    Raises:
        UserError: a file cannot be read, is not a mapping, extends something that is not a path, extends itself (also indirectly), or
            states M for a method without latents.
    """
    path = Path(path)
    content = _read(path)
    base = content.pop(EXTENDS, None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise UserError(f"configuration file {path}: {EXTENDS} must be the path of another configuration file")
    chain = (*inside, path.resolve())
    if (path.parent / base).resolve() in chain:
        raise UserError(f"configuration file {path}: {EXTENDS} '{base}' leads back to a file that extends it")
    return merge(read_sections(path.parent / base, chain), content)


def merge(base: dict[Any, Any], changes: dict[Any, Any]) -> dict[Any, Any]:
    """Return `base` with `changes` merged in, section by section; any value that is not a section is replaced as a whole."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _read(path: Path) -> dict[Any, Any]:
    text = read_text(path, "configuration file", "name another one, or look at the ones in configs/")
    try:
        content = load_yaml(text)
    except YAML_ERRORS as error:
        raise UserError(f"configuration file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"configuration file {path} must hold sections such as 'model:', not a {type(content).__name__}")
    latent = content.get("latent")
    refuse_unused_latents(str(path), content.get("method"), latent.get("num_tokens") if isinstance(latent, dict) else None)
    return content


def refuse_unused_latents(source: str, method: Any, num_tokens: Any) -> None:
    """Refuse M together with a method without latents in one file; in a file that only changes the method, the inherited M is ignored.

    Raises:
        UserError: `num_tokens` is not zero, but `method` has no latents.
    """
    if isinstance(method, str) and method in WITHOUT_LATENTS and num_tokens:
        raise UserError(f"{source}: latent.num_tokens is {num_tokens}, but method {method} has no latents; leave it out or choose another")
