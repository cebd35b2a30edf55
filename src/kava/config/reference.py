"""List every setting with its type, default and description from the schema, for `kava train --help` and docs/configuration.md.

python -m kava.config.reference > docs/configuration.md
"""

import json
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from kava.config.schema import Config

_BOUNDS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}
# Bounds of this size or larger are not shown: they only keep numbers finite or within 32 bits.
_FAR = 1e6
_TITLES = {
    "": "Method", "model": "Base model", "lora": "Adapters", "latent": "Latents", "dataset": "Training data", "loss": "Losses",
    "rkv": "Eviction", "training": "Training", "evaluation": "Evaluation", "system": "Machine", "model.mini": "The mini experiment's base",
    "dataset.mini": "The mini experiment's problems",
}  # fmt: skip
_PAGE = """# Every setting

Written from the schema (`src/kava/config/schema.py`) by `python -m kava.config.reference > docs/configuration.md`; a test keeps the two
in step.

A setting stands in a YAML file under its section, or on the command line as `--SECTION.KEY VALUE`, where it wins:

```yaml
training:
  batch_size: 64
```

```bash
python train.py --config configs/llama1b_aug.yaml --training.batch_size 64
```

`kava configs` lists the configurations that come with the package, `kava configs llama1b_aug` shows one. A file that says
`extends: llama1b_aug.yaml` states only what differs from that file. Unknown keys, wrong types, values out of range and contradictions
are refused in one sentence.
"""


@dataclass(frozen=True)
class Setting:
    """One setting: dotted key, allowed values, default in YAML notation, description."""

    key: str
    kind: str
    default: str
    description: str


def settings(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[Setting]:
    """Yield all settings by section; the settings of a section come before those of its nested sections."""
    inside = []
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inside.append((field.annotation, f"{key}."))
            continue
        bounds = [text.format(f"{getattr(item, name):g}") for item in field.metadata for name, text in _BOUNDS.items() if _near(item, name)]
        kind = ", ".join([_kind(field.annotation), *bounds])
        yield Setting(key, kind, json.dumps(field.default, ensure_ascii=False), field.description or "")
    for annotation, section in inside:
        yield from settings(annotation, section)


def as_markdown() -> str:
    """Return the content of docs/configuration.md."""
    parts, section = [_PAGE], None
    for setting in settings():
        place, _, name = setting.key.rpartition(".")
        if place != section:
            section = place
            where = f" (`{place}`)" if place else ""
            parts.append(f"\n## {_TITLES.get(place, place)}{where}\n\n| setting | values | default | |\n|---|---|---|---|\n")
        cells = (f"`{name}`", setting.kind, f"`{setting.default}`", setting.description)
        parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def as_help() -> str:
    """Return all settings as text for a terminal."""
    width = max(60, shutil.get_terminal_size().columns)
    lines = ["", "settings (in a file under their section, or here as --SECTION.KEY VALUE, which wins):", ""]
    for setting in settings():
        lines.append(f"  --{setting.key}  {setting.kind} (default: {setting.default})")
        lines += textwrap.wrap(setting.description, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _kind(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if origin in (Union, UnionType):
        return " | ".join("null" if part is NoneType else _kind(part) for part in get_args(annotation))
    if origin is list:
        return "list of texts"
    if origin is dict:
        return "mapping of texts"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true | false"}[annotation.__name__]


def _near(item: Any, name: str) -> bool:
    value = getattr(item, name, None)
    return value is not None and abs(value) < _FAR


if __name__ == "__main__":
    print(as_markdown(), end="")
