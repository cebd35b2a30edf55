"""Files of a run: names that are safe as part of a path, atomic writing, and validation when reading."""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from kava.config.overrides import is_safe_name
from kava.config.strict_yaml import YAML_ERRORS, load_yaml
from kava.errors import UserError, reason_of
from kava.runtime.text import read_text

# Limits of a file that holds a mapping, far above what any of our files needs.
MAX_DEPTH, MAX_VALUES = 50, 1_000_000
# JSON can contain a lone surrogate ("\\ud800"), which UTF-8 cannot encode.
SURROGATE = re.compile("[\ud800-\udfff]")


class Record(BaseModel):
    """Base class of the parts of a file, with strict validation: no unknown keys, no silent conversion, finite numbers only."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _refuse_odd_sections(config: dict[str, Any]) -> dict[str, Any]:
    for name, section in config.items():
        if name != "method" and not isinstance(section, dict):
            raise ValueError(f"'{name}' is no section")
    return config


# A recorded configuration: the method's name and sections, of any version.
Sections = Annotated[dict[str, Any], AfterValidator(_refuse_odd_sections)]
T = TypeVar("T", bound=Record)


def checked_name(name: str, what: str) -> str:
    """Return `name` if it is safe as part of a path or a command.

    Raises:
        UserError: it contains anything but letters, digits, '_', '.' and '-', begins with '-', or is only dots.
    """
    if not is_safe_name(name):
        raise UserError(f"{what} {name!r} is not a valid name: use letters, digits, '_', '.' and '-' only")
    return name


def write_text(path: str | Path, text: str) -> None:
    """Write a file atomically: write a temporary file in the same directory, flush it to disk and rename it.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    if not path.name:
        raise UserError(f"cannot write '{path}': it names no file")
    if path.exists() and not path.is_file() and not path.is_dir():
        _write_through(path, text)
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; free some space or choose another output path") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _write_through(path: Path, text: str) -> None:
    """Write to a device or a pipe (/dev/stdout, /dev/null), which a renamed file would replace."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another output path") from None


def read_mapping(path: str | Path, what: str, cure: str) -> dict[str, Any]:
    """Read a YAML or JSON file that must hold a mapping.

    Raises:
        UserError: the file is missing, unreadable, not valid YAML or JSON, or does not hold a mapping.
    """
    text = read_text(path, what, cure)
    # JSON writers write numbers such as 1e-09, which YAML 1.1 reads as a string.
    kind, load = ("JSON", json.loads) if Path(path).suffix == ".json" else ("YAML", load_yaml)
    try:
        content = load(text)
        _refuse_odd(content)
    except YAML_ERRORS as error:
        raise UserError(f"{what} {path} is not valid {kind} ({reason_of(error)}); {cure}") from None
    if not isinstance(content, dict):
        raise UserError(f"{what} {path} does not contain a mapping (truncated or another kind of file); {cure}")
    return content


def parse_record(model: type[T], content: Any, where: str, cure: str) -> T:
    """Validate content against the fields of a record.

    Raises:
        UserError: the content is not valid; the message names the first wrong fields.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc'])) or 'content'}: {reason_of(p['msg'])}" for p in error.errors()[:3]]
    except RecursionError:
        problems = ["nested too deeply"]
    raise UserError(f"{where} is broken: {'; '.join(problems)}; {cure}")


def _refuse_odd(content: Any) -> None:
    """Refuse content that is too large or not text.

    YAML allows a structure that contains itself, a few lines that expand to more values than fit in memory, and keys of any type.

    Raises:
        ValueError: nested too deeply, too many values, a key that is not a string, or a string that UTF-8 cannot encode.
    """
    level, count = [content], 0
    for _ in range(MAX_DEPTH):
        mappings = [part for part in level if isinstance(part, dict)]
        texts = [part for part in level if isinstance(part, str)] + [key for mapping in mappings for key in mapping if isinstance(key, str)]
        if any(SURROGATE.search(text) for text in texts):
            raise ValueError("half of a character, such as \\ud800 alone, is no text")
        for key in (key for mapping in mappings for key in mapping if not isinstance(key, str)):
            raise ValueError(f"the key {key!r} is no text")
        level = [value for mapping in mappings for value in mapping.values()] + [
            value for part in level if isinstance(part, list) for value in part
        ]
        count += len(level)
        if not level:
            return
        if count > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values")
    raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
