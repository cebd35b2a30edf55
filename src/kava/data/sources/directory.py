"""Find the file in a directory that contains a split or a benchmark: by content first, then by the words in its name."""

import re
from dataclasses import dataclass, replace
from itertools import groupby, islice, product
from pathlib import Path

from kava.data.example import CotType
from kava.data.sources.benchmarks import BENCHMARKS
from kava.data.sources.configurations import NoSuchConfigurationError, chosen, configurations
from kava.data.sources.formats import FORMATS, Format, Row, recognise
from kava.data.sources.readers import BadRow, LocatedRow, read_rows
from kava.errors import UserError

FIRST_ROWS = 20
_MAX_DEPTH = 3
_SHARD = re.compile(r"[-_.]\d+[-_]of[-_](\d+)$")
_ALIASES = {
    "train": frozenset({"train", "training"}),
    "validation": frozenset({"validation", "valid", "val", "dev"}),
    "test": frozenset({"test", "testing"}),
}


class NoSuchSplitError(UserError):
    """The data set exists but has no such split; the message lists the existing files."""


class MissingShardsError(UserError):
    """A split of several files lacks some of them."""


@dataclass(frozen=True)
class DataFile:
    """One data set in a directory: a file, or the shards ``name-00000-of-00002`` of one, and the format of its first rows."""

    paths: tuple[Path, ...]
    stem: str
    words: frozenset[str]
    format: Format
    forms: frozenset[CotType]

    @property
    def missing_shards(self) -> int:
        """Number of shards that the files' names count and that are not there."""
        counted = [int(found[1]) for path in self.paths if (found := _SHARD.search(path.with_suffix("").name))]
        return max(counted[0] - len(counted), 0) if counted and len(set(counted)) == 1 else 0

    def fits(self, cot_type: CotType | None) -> bool:
        return cot_type is None or not self.forms or cot_type in self.forms

    def split_names(self) -> set[str]:
        return {split for split, aliases in _ALIASES.items() if self.words & aliases}


def canonical_split(name: str) -> str:
    """Return the standard name of a split: ``dev``, ``val`` and ``valid`` mean validation; unknown names are returned unchanged."""
    return next((split for split, aliases in _ALIASES.items() if name.lower() in aliases), name)


def first_rows(rows: list[LocatedRow]) -> list[Row]:
    return [row for _, row in rows if not isinstance(row, BadRow)]


def data_files(directory: Path, configuration: str | None = None) -> list[DataFile]:
    """Return every file of a directory (except hidden files and deep subdirectories) whose first rows have a known format.

    If the directory has several configurations, return only the files of one: the named one, else ``main`` or ``default``.

    Raises:
        NoSuchConfigurationError: this configuration has no data file.
    """

    def series(path: Path) -> tuple[str, str, str]:
        name = path.relative_to(directory).with_suffix("").as_posix()
        shard = _SHARD.search(name)
        return _SHARD.sub("", name), shard[1] if shard else "", path.suffix

    patterns = ("/".join("*" * depth) for depth in range(1, _MAX_DEPTH + 1))
    paths = [path for pattern in patterns for path in directory.glob(pattern) if path.is_file()]
    visible = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(directory).parts)]
    wanted = chosen(directory, configuration)
    kept = [path for path in visible if wanted is None or wanted.holds(path.relative_to(directory).as_posix())]
    found = (_recognise_file(tuple(sorted(shards)), stem) for (stem, *_), shards in groupby(sorted(kept, key=series), key=series))
    data = [data_file for data_file in found if data_file is not None]
    if wanted is not None and not data:
        others = [
            name
            for name, other in configurations(directory).items()
            if any(other.holds(p.relative_to(directory).as_posix()) for p in visible)
        ]
        cure = (
            f"name a folder of it, such as {directory / others[0]}" if others and (directory / others[0]).is_dir() else "name a file of it"
        )
        raise NoSuchConfigurationError(
            f"directory {directory} has no data of configuration '{wanted.name}', but of {', '.join(others) or 'none'}; {cure}"
        )
    return data


def choose_split(directory: Path, split: str, cot_type: CotType | None, configuration: str | None = None) -> DataFile:
    """Return the only file for a split that has the requested kind of trace.

    Raises:
        NoSuchSplitError: there is none.
        UserError: there are several.
    """
    files = data_files(directory, configuration)
    wanted = _ALIASES.get(canonical_split(split), frozenset({split.lower()}))
    named = [file for file in files if file.words & wanted or file.stem.rpartition("/")[2].lower() == split.lower()]
    fitting = [file for file in named if file.fits(cot_type)]
    with_trace = [file for file in fitting if file.forms]
    candidates = with_trace or fitting
    if len(candidates) > 1:
        raise _several(directory, f"split '{split}'", candidates)
    if not candidates:
        why = f" with {cot_type} steps" if named else ""
        raise NoSuchSplitError(f"directory {directory} has no file for split '{split}'{why}; it holds {listing(files)}")
    return candidates[0]


def choose_benchmark(directory: Path, dataset: str, configuration: str | None = None, *, whole: bool = False) -> DataFile:
    """Return the file that contains an evaluation set of `BENCHMARKS`, e.g. the only GSM8K test file.

    Args:
        whole: the directory contains only this set, so its files do not need the name of the set in their path.

    Raises:
        NoSuchSplitError: there is none.
        UserError: there are several.
    """
    benchmark, files = BENCHMARKS[dataset], data_files(directory, configuration)
    named = [file for file in files if benchmark.is_named(dataset, f"{directory.absolute().name}/{file.stem}")]
    unnamed = [] if benchmark.by_name and not whole else files
    for fitting, form, split in product((named, unnamed), benchmark.formats, (*benchmark.splits, None)):
        found = _of_split([file for file in fitting if file.format is FORMATS[form]], split)
        if len(found) > 1:
            raise _several(directory, f"benchmark '{dataset}'", found)
        if found:
            return found[0]
    name = ", in a file that carries its name" if benchmark.by_name and not whole else ""
    raise NoSuchSplitError(f"directory {directory} has no file for benchmark '{dataset}'{name}; it holds {listing(files)}")


def _several(directory: Path, what: str, files: list[DataFile]) -> UserError:
    names = ", ".join(file.paths[0].relative_to(directory).as_posix() for file in files)
    return UserError(f"directory {directory} has several files for {what}: {names}; keep one of them, or name the file itself")


def _of_split(files: list[DataFile], split: str | None) -> list[DataFile]:
    """Return the files of a split (None: of no split); ``train+test`` joins the two files into one."""
    if split is None:
        return [file for file in files if not file.split_names()]
    parts = [[file for file in files if part in file.split_names()] for part in split.split("+")]
    if len(parts) == 1 or any(len(part) > 1 for part in parts):
        return max(parts, key=len)
    if not all(parts):
        return []
    joined = [part[0] for part in parts]
    stem = "+".join(file.stem for file in joined)
    return [replace(joined[0], paths=tuple(path for file in joined for path in file.paths), stem=stem)]


def listing(files: list[DataFile]) -> str:
    """Return what a directory contains, for an error message."""
    return ", ".join(f"{file.stem} ({file.format.name})" for file in files) or "no file of a known format"


def _recognise_file(files: tuple[Path, ...], stem: str) -> DataFile | None:
    try:
        rows = first_rows(list(islice(read_rows(files[0]), FIRST_ROWS)))
    except UserError:
        return None  # not a data file: an image, an archive, a file without read permission
    form = recognise(rows)
    if form is None:
        return None
    words = frozenset(word for word in re.split(r"[^a-z0-9]+", stem.lower()) if word)
    return DataFile(files, stem, words, form, form.trace_forms([row for row in rows if form.matches(row)]))
