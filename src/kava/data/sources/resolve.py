"""Resolve a name to the rows of one split: a local file, a directory, a saved data set, or a hub name."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kava.data.example import CotType
from kava.data.sources import hub
from kava.data.sources.benchmarks import BENCHMARKS
from kava.data.sources.configurations import NoSuchConfigurationError, is_whole
from kava.data.sources.directory import DataFile, MissingShardsError, NoSuchSplitError, canonical_split, choose_benchmark, choose_split
from kava.data.sources.readers import LocatedRow, read_rows
from kava.errors import UserError
from kava.runtime.atomic import checksum

if TYPE_CHECKING:
    import datasets

_DATA_SUFFIXES = {".json", ".jsonl", ".parquet", ".txt"}


@dataclass(frozen=True)
class Opened:
    """Rows of one split, not yet read.

    Attributes:
        rows: returns an iterator over (place, row) pairs, which starts at the first row in every call.
        content: returns a hash of the content of all rows, without parsing them.
        source: resolved path, or hub name with split.
        label: name of the source in an error about one row.
        stem: first part of the examples' ids.
    """

    rows: Callable[[], Iterator[LocatedRow]]
    content: Callable[[], str]
    source: str
    label: str
    stem: str


def open_split(name: str, split: str, cot_type: CotType | None, *, separate_split: bool = False) -> Opened:
    """Open a split; `separate_split` refuses sources without splits, because their rows are also the training rows.

    Raises:
        NoSuchSplitError: the source has no such split.
        UserError: there is no data with this name.
    """
    path = local_path(name)
    if path.is_file():
        if separate_split:
            raise NoSuchSplitError(f"{path} is a single file without splits")
        return _open_files((path,), path.stem)
    if path.is_dir() and hub.is_saved_dataset(path):
        return _open_dataset(hub.load_saved(path), (split,), str(path.resolve()), path.resolve().name, separate_split)
    if path.is_dir():
        return _open_data_file(choose_split(path, split, cot_type))
    return _open_hub(name, (split,), lambda directory, configuration: choose_split(directory, split, cot_type, configuration))


def open_benchmark(name: str, dataset: str) -> Opened:
    """Open an evaluation set of `BENCHMARKS`; raises the same errors as `open_split`."""
    path = local_path(name)
    splits = BENCHMARKS[dataset].splits
    if path.is_file():
        return _open_files((path,), path.stem)
    if path.is_dir() and hub.is_saved_dataset(path):
        return _open_dataset(hub.load_saved(path), splits, str(path.resolve()), path.resolve().name)
    if path.is_dir():
        return _open_data_file(choose_benchmark(path, dataset))
    return _open_hub(name, splits, lambda directory, configuration: choose_benchmark(directory, dataset, configuration, whole=True))


def _open_data_file(data_file: DataFile) -> Opened:
    _refuse_missing_shards(data_file)
    return _open_files(data_file.paths, data_file.stem)


def _refuse_missing_shards(data_file: DataFile) -> None:
    if data_file.missing_shards:
        there = len(data_file.paths)
        raise MissingShardsError(
            f"{data_file.paths[0].parent} has {there} of the {there + data_file.missing_shards} parts of '{data_file.stem}'; "
            "copy or download the others"
        )


def _open_files(paths: tuple[Path, ...], stem: str) -> Opened:
    source = str(paths[0].resolve()) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    content = partial(_content_of, paths)
    if len(paths) == 1:
        return Opened(partial(read_rows, paths[0]), content, source, paths[0].name, stem)
    return Opened(partial(_shard_rows, paths), content, source, stem, stem)


def _content_of(paths: Sequence[Path]) -> str:
    digests = []
    for path in paths:
        try:
            digests.append(checksum(path))
        except OSError as error:
            raise UserError(f"data file {path} cannot be read: {error}") from None
    return " ".join(digests)


def _shard_rows(paths: tuple[Path, ...]) -> Iterator[LocatedRow]:
    for path in paths:
        for place, row in read_rows(path):
            yield f"({path.name}) {place}", row


def _open_dataset(
    dataset: "datasets.DatasetDict | datasets.Dataset", splits: tuple[str, ...], source: str, stem: str, separate_split: bool = False
) -> Opened:
    import datasets

    if isinstance(dataset, datasets.Dataset):
        if separate_split:
            raise NoSuchSplitError(f"{source} has no splits")
        return _open_rows(dataset, source, stem, stem)
    for split in splits:
        names = [_found_split(dataset, part) for part in split.split("+")]
        if all(names):
            rows = datasets.concatenate_datasets([dataset[name] for name in names]) if len(names) > 1 else dataset[names[0]]
            place = f"{source} ({'+'.join(map(str, names))})"
            return _open_rows(rows, place, place, stem)
    raise NoSuchSplitError(f"data set {source} has no split '{splits[0]}'; it has {', '.join(map(str, dataset))}")


def _found_split(dataset: "datasets.DatasetDict", split: str) -> str | None:
    """Return the name that a data set uses for a split, or None."""
    return next((str(name) for name in dataset if name == split or canonical_split(str(name)) == canonical_split(split)), None)


def _open_rows(dataset: "datasets.Dataset", source: str, label: str, stem: str) -> Opened:
    return Opened(partial(hub.dataset_rows, dataset), partial(hub.dataset_content, dataset), source, label, stem)


def _open_hub(name: str, splits: tuple[str, ...], choose: Callable[[Path, str | None], DataFile]) -> Opened:
    """Open a hub data set from the cache of `load_dataset` or `hf download`, else download it."""
    _refuse_missing_path(name)
    wanted = hub.HubName.parse(name)
    prepared = hub.cached_dataset(wanted)
    if prepared is not None:
        return _open_dataset(prepared.splits, splits, prepared.source, wanted.repository)
    snapshot = hub.downloaded_snapshot(wanted)
    missing: UserError | None = None
    if snapshot is not None:
        try:
            return _of_snapshot(choose(snapshot, wanted.configuration), snapshot, wanted)
        except NoSuchSplitError as error:
            if is_whole(snapshot, wanted.configuration):
                raise
            missing = error
        except MissingShardsError as error:
            missing = error
        except NoSuchConfigurationError:
            pass
    try:
        found = hub.download(wanted)
    except UserError:
        if missing is None:
            raise
        raise missing from None
    if isinstance(found, Path):
        return _of_snapshot(choose(found, wanted.configuration), found, wanted)
    return _open_dataset(found.splits, splits, found.source, wanted.repository)


def _of_snapshot(data_file: DataFile, snapshot: Path, wanted: hub.HubName) -> Opened:
    """Open a file of a snapshot, named like data from the cache of `datasets`: results must not depend on how it was downloaded."""
    source = f"{wanted.repository}@{snapshot.name} ({data_file.stem})"
    return replace(_open_data_file(data_file), source=source, stem=wanted.repository)


def _refuse_missing_path(name: str) -> None:
    path = local_path(name)
    looks_local = path.is_absolute() or name.startswith(".") or name.count("/") > 1 or path.suffix in _DATA_SUFFIXES
    if not looks_local:
        return
    parent = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = ", ".join(sorted(child.name for child in parent.iterdir() if not child.name.startswith("."))[:20])
    raise UserError(f"data path {name} does not exist; {parent} holds {names or 'nothing'}")


def local_path(name: str) -> Path:
    """Return a name as a path; `~` is expanded to the home directory."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(f"data path {name} starts with the home directory of an unknown user; write the whole path") from None
