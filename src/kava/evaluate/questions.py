"""Load the questions of a data set: by name, from a file, a directory or the hub, with answers of the model's type."""

from kava.config import Config
from kava.data.example import CotType
from kava.data.sources.benchmarks import BENCHMARKS
from kava.data.sources.directory import NoSuchSplitError
from kava.data.sources.load import load_benchmark
from kava.data.sources.resolve import local_path, open_benchmark
from kava.data.sources.stream import Loaded
from kava.errors import UserError


def load_questions(config: Config, dataset: str, data_dir: str | None, limit: int | None = None, cot_type: CotType | None = None) -> Loaded:
    """Load the questions of a data set: from `data_dir`, else from the training data's directory if it has this set, else as configured.

    With `cot_type`, gold steps of that type are loaded as well.

    Raises:
        UserError: the data cannot be found or read, `data_dir` is given although `dataset` is a path or built in, or the answers are of
            another type than those the model was trained on.
    """
    configured, known = config.evaluation.datasets.get(dataset), BENCHMARKS.get(dataset)
    source = configured or (known.hub if known else dataset)
    found = source is not None and (local_path(source).exists() or source.startswith("builtin:"))
    if data_dir is not None:
        if source is not None and (source.startswith("builtin:") or (found and source == dataset)):
            raise UserError(
                f"'{dataset}' says itself where its questions are: leave --data_dir {data_dir} out, or give a name such as gsm8k"
            )
        source = data_dir
    elif known and configured in (None, known.hub) and not found and _holds(config.dataset.name, dataset):
        source = config.dataset.name
    if source is None:
        raise UserError(
            f"data set '{dataset}' is not on the hub: give its place, --data_dir DIRECTORY or --evaluation.datasets.{dataset} FILE"
        )
    mini, on_bad_row = config.dataset.mini, config.dataset.on_bad_row
    limit = limit or config.evaluation.max_samples
    answer_type = config.dataset.answer_type
    loaded = load_benchmark(dataset, source, on_bad_row=on_bad_row, mini=mini, limit=limit, cot_type=cot_type, answer_type=answer_type)
    asked = loaded.examples[0].answer_type if loaded.examples else answer_type
    if asked != answer_type:
        raise UserError(
            f"the answers of '{dataset}' are of type {asked}, but the model was trained to give a {answer_type}; "
            f"set --dataset.answer_type {asked} to read its answers as that type anyway"
        )
    return loaded


def _holds(name: str, dataset: str) -> bool:
    """Return whether the training data is a directory that also contains this evaluation set: it or the set's file has its name."""
    directory = local_path(name)
    try:
        opened = open_benchmark(name, dataset) if directory.is_dir() else None
    except NoSuchSplitError:
        return False
    return opened is not None and BENCHMARKS[dataset].is_named(dataset, f"{directory.absolute().name}/{opened.stem}")
