"""What goes through the `datasets` library: hub names and directories written by `save_to_disk`.

The library reads HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE itself.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kava.data.sources.readers import Placed
from kava.errors import UserError

if TYPE_CHECKING:
    import datasets

PREFERRED_CONFIG = "main"
# Rows that are in memory at a time.
BLOCK = 1000


def is_saved_dataset(directory: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this directory."""
    return (directory / "dataset_dict.json").is_file() or (directory / "state.json").is_file()


def load_saved(directory: Path) -> "datasets.DatasetDict | datasets.Dataset":
    """Open a directory written by `save_to_disk`.

    Raises:
        UserError: the directory is damaged.
    """
    import datasets

    try:
        return datasets.load_from_disk(str(directory))
    except Exception as error:  # the library raises many kinds for a damaged directory
        raise UserError(f"saved data set {directory} cannot be read ({_summary(error)}); save it again with save_to_disk") from error


def load_from_hub(name: str) -> "datasets.DatasetDict":
    """Load all splits of a hub data set; of several configurations the one named ``main`` is taken, as GSM8K's is.

    Raises:
        UserError: the hub, its mirror or the cache does not give it.
    """
    import datasets

    try:
        configurations = datasets.get_dataset_config_names(name)
        choice = PREFERRED_CONFIG if len(configurations) > 1 and PREFERRED_CONFIG in configurations else None
        return datasets.load_dataset(name, choice)
    except Exception as error:  # network, cache, missing or gated data set, unknown format: the cures are the same
        raise UserError(
            f"data set '{name}' cannot be loaded from the hub ({_summary(error)}): set HF_ENDPOINT to a mirror such as "
            f"https://hf-mirror.com, or download it beforehand where there is a network, with the same HF_HOME "
            f"(python -c \"from datasets import load_dataset; load_dataset('{name}')\"), or give a local file or directory in its place"
        ) from error


def downloaded_snapshot(name: str) -> Path | None:
    """The directory that ``hf download --repo-type dataset <name>`` filled under HF_HOME, or None."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(name, repo_type="dataset", local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def dataset_rows(dataset: "datasets.Dataset") -> Iterator[Placed]:
    """Yield ("row 17", row) for every row of one split."""
    number = 0
    for table in dataset.with_format("arrow").iter(batch_size=BLOCK):
        for row in table.to_pylist():
            number += 1
            yield f"row {number}", row


def dataset_content(dataset: "datasets.Dataset") -> str:
    """A hash of all rows of one split, from its Arrow tables."""
    import pyarrow

    digest = hashlib.sha256()
    for table in dataset.with_format("arrow").iter(batch_size=BLOCK):
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        digest.update(sink.getvalue())
    return digest.hexdigest()


def _summary(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
