"""Load data sets with the `datasets` library: hub names and directories written by `save_to_disk`.

The caches are tried first: that of `load_dataset`, then that of `hf download`. The libraries read HF_HOME, HF_ENDPOINT and
HF_HUB_OFFLINE themselves.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kava.data.sources.configurations import PREFERRED, preferred
from kava.data.sources.readers import LocatedRow
from kava.errors import UserError
from kava.runtime.hub import commit_of, cures, first_line, refusal, unreachable

if TYPE_CHECKING:
    import datasets

_NAME = re.compile(r"(?P<repository>[\w.-]+(?:/[\w.-]+)?)(?::(?P<configuration>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_INFO = "dataset_info.json"
# Rows held in memory at a time.
BLOCK = 1000


def is_saved_dataset(directory: Path) -> bool:
    """Return whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this directory."""
    return (directory / "dataset_dict.json").is_file() or (directory / "state.json").is_file()


def load_saved(directory: Path) -> "datasets.DatasetDict | datasets.Dataset":
    """Open a directory written by `save_to_disk`.

    Raises:
        UserError: the directory is damaged.
    """
    import datasets

    try:
        return datasets.load_from_disk(str(directory))
    except Exception as error:  # the library raises many types of error for a damaged directory
        raise UserError(
            f"saved data set {directory} cannot be read ({type(error).__name__}: {first_line(error)}); save it again with save_to_disk"
        ) from error


@dataclass(frozen=True)
class HubDataset:
    """All splits of one configuration, and where they come from: ``owner/name@commit``."""

    splits: "datasets.DatasetDict"
    source: str


@dataclass(frozen=True)
class HubName:
    """``owner/name``, ``owner/name:configuration`` or either with ``@revision`` (a commit, tag or branch)."""

    repository: str
    configuration: str | None = None
    revision: str | None = None

    @staticmethod
    def parse(name: str) -> "HubName":
        """Parse the name that a user gives; a text of another form becomes the repository unchanged, and the hub rejects it."""
        found = _NAME.fullmatch(name)
        return HubName(*found.group("repository", "configuration", "revision")) if found else HubName(name)

    def commit(self) -> str | None:
        """Return the commit of the revision, or None if the cache does not know it."""
        if self.revision and _COMMIT.fullmatch(self.revision):
            return self.revision
        return commit_of(self.repository, self.revision, "dataset")


def cached_dataset(wanted: HubName) -> HubDataset | None:
    """Return what ``load_dataset`` stored under HF_DATASETS_CACHE; None if it is incomplete or the configuration is ambiguous."""
    import datasets

    held = _prepared(wanted.repository)
    choice = wanted.configuration or next((name for name in PREFERRED if name in held), None)
    directories = [path for path in held.get(choice or "", []) if not wanted.revision or path.name == wanted.commit()]
    if not directories:
        return None
    newest = max(directories, key=lambda path: path.stat().st_mtime)
    found = {}
    for split, rows in _splits_of(newest).items():
        files = sorted([*newest.glob(f"*-{split}.arrow"), *newest.glob(f"*-{split}-*-of-*.arrow")])
        parts = [datasets.Dataset.from_file(str(path)) for path in files if not path.name.startswith("cache-")]
        if not parts or sum(map(len, parts)) != rows:
            return None  # the preparation was interrupted
        found[split] = datasets.concatenate_datasets(parts)
    return HubDataset(datasets.DatasetDict(found), _at(wanted.repository, newest.name)) if found else None


def _prepared(repository: str) -> dict[str, list[Path]]:
    """Return the directories of prepared rows, ``OWNER___NAME/configuration/version/commit``, by configuration."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    owner, slash, name = repository.rpartition("/")
    root = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / f"{owner}{'___' if slash else ''}{camelcase_to_snakecase(name)}"
    held: dict[str, list[Path]] = {}
    for path in root.glob(f"*/*/*/{_INFO}"):
        # A directory with another name contains files that were selected by hand.
        if _info(path.parent).get("config_name") == path.parts[-4]:
            held.setdefault(path.parts[-4], []).append(path.parent)
    return held


def _splits_of(directory: Path) -> dict[str, int]:
    splits = _info(directory).get("splits")
    return {split: about.get("num_examples", 0) for split, about in splits.items()} if isinstance(splits, dict) else {}


def _info(directory: Path) -> dict[str, Any]:
    try:
        content = json.loads((directory / _INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _at(repository: str, commit: str | None) -> str:
    return f"{repository}@{commit}" if commit and _COMMIT.fullmatch(commit) else repository


def downloaded_snapshot(wanted: HubName) -> Path | None:
    """Return the directory that ``hf download --repo-type dataset NAME`` filled, or None."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            huggingface_hub.snapshot_download(wanted.repository, repo_type="dataset", revision=wanted.revision, local_files_only=True)
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def download(wanted: HubName) -> HubDataset | Path:
    """Download all splits of one configuration from the hub, or the files of a data set that has a loading script.

    Raises:
        UserError: the hub cannot be reached or refuses access, or the configuration does not exist or is ambiguous.
    """
    import datasets
    import huggingface_hub

    name = wanted.repository
    reason = unreachable()
    if reason is not None:
        held = sorted(_prepared(name)) if wanted.configuration is None else []
        cure = f"name it {name}:{held[0]}, for a named set with --evaluation.datasets.NAME {name}:{held[0]}" if held else ""
        only = f" but for the configuration {held[0]} ({cure})" if held else ""
        raise UserError(f"data set '{name}' is not in the cache{only}, and {reason}: {cures('data set', name)}")
    try:
        # Query the hub first, because the errors of the `datasets` calls below do not give the reason.
        revision = huggingface_hub.HfApi().dataset_info(name, revision=wanted.revision).sha
        known = list(datasets.get_dataset_config_names(name, revision=revision))
        choice = wanted.configuration or preferred(known)
        if choice is None or choice not in known:
            wrong = f"has no configuration '{choice}'" if choice else "has several configurations"
            raise UserError(f"data set '{name}' {wrong}; name one, such as {name}:{known[0]}, of {', '.join(known)}")
        return HubDataset(datasets.load_dataset(name, choice, revision=revision), _at(name, revision))
    except UserError:
        raise
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise refusal("data set", name, error) from error
        return Path(huggingface_hub.snapshot_download(name, repo_type="dataset", revision=wanted.revision))
    except Exception as error:  # network, gated or missing data set, unknown format
        raise refusal("data set", name, error) from error


def dataset_rows(dataset: "datasets.Dataset") -> Iterator[LocatedRow]:
    """Yield ("row 17", row) for every row of one split."""
    number = 0
    for table in dataset.with_format("arrow").iter(batch_size=BLOCK):
        for row in table.to_pylist():
            number += 1
            yield f"row {number}", row


def dataset_content(dataset: "datasets.Dataset") -> str:
    """Return a hash of all rows of one split, from its Arrow tables."""
    import pyarrow

    digest = hashlib.sha256()
    for table in dataset.with_format("arrow").iter(batch_size=BLOCK):
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        digest.update(sink.getvalue())
    return digest.hexdigest()
