"""Write and read a batch as a file: tensors as safetensors, plain values as JSON in the header; nothing is pickled.

write_batch(path, batch, {"rng.cpu": torch.get_rng_state()})
batch, extra = read_batch(path)
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kava.data.collate import Batch, Suffix
from kava.errors import UserError, reason_of

_SUFFIXES = ("student", "teacher")
_EXTRA = "extra."


def write_batch(path: Path, batch: Batch, extra: Mapping[str, Tensor]) -> None:
    """Write a batch and the additional tensors of `extra` to a file; the tensors may be on any device."""
    tensors = {f"{_EXTRA}{name}": tensor for name, tensor in extra.items()}
    plain: dict[str, Any] = {}
    for prefix, part in (("", batch), *((f"{name}.", getattr(batch, name)) for name in _SUFFIXES)):
        for field in fields(part) if part is not None else ():
            value = getattr(part, field.name)
            if isinstance(value, Tensor):
                tensors[prefix + field.name] = value
            elif not isinstance(value, Suffix):
                plain[prefix + field.name] = value
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(content, path, metadata={"batch": json.dumps(plain)})


def read_batch(path: Path) -> tuple[Batch, dict[str, Tensor]]:
    """Read the batch and the additional tensors that `write_batch` wrote.

    Raises:
        UserError: the file is damaged or is not a saved batch.
    """
    try:
        with safe_open(path, framework="pt") as file:
            values: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            values |= json.loads(file.metadata()["batch"])
        extra = {name.removeprefix(_EXTRA): values.pop(name) for name in list(values) if name.startswith(_EXTRA)}
        suffixes = {name: _suffix(values, f"{name}.") for name in _SUFFIXES}
        if suffixes["student"] is None:
            raise KeyError("student")
        batch = Batch(**values | suffixes | {"ids": tuple(values["ids"])})
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no saved batch ({reason_of(error)}); run the training again to save one") from None
    return batch, extra


def _suffix(values: dict[str, Any], prefix: str) -> Suffix | None:
    found = {name.removeprefix(prefix): values.pop(name) for name in list(values) if name.startswith(prefix)}
    return Suffix(**found) if found else None
