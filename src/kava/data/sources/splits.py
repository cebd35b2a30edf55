"""Training and validation examples without common questions; sources are opened first and read later, one example at a time."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from kava.config.schema import DatasetConfig
from kava.data.example import Example
from kava.data.fingerprint import fingerprint
from kava.data.sources.directory import NoSuchSplitError, canonical_split
from kava.data.sources.resolve import Opened, open_split
from kava.data.sources.stream import BUILTIN, Loaded, Rules, Stream, Tally, builtin_stream, question_key, stream
from kava.errors import UserError

HELD_OUT_ROWS = 500


@dataclass(frozen=True)
class Splits:
    """Training and validation rows of one source, not yet read.

    Attributes:
        source: source of the training rows, as in `Loaded`.
        content: returns hashes of everything that determines the examples (rows and rules); much faster than reading them.
        read: returns the training examples as a stream, and the validation examples. Raises UserError if a row cannot be read, no
            row is usable, or there are fewer than 10 rows and a tenth has to be held out.
    """

    source: str
    content: Callable[[], list[str]]
    read: Callable[[], tuple[Stream, Loaded]]


def open_training(dataset: DatasetConfig) -> Splits:
    """Find the training and validation rows of a configuration, without reading them.

    If the source has no validation split of the requested kind (a single file, `openai/gsm8k`, a directory whose validation file has
    equations when sentences are requested), the last 500 rows of train (at most a tenth) are held out. If it has one, training
    rows with one of its questions are left out and counted in `note`: all 500 GSM8k-AUG validation questions are GSM8K training
    questions. `max_train_samples` applies to the training examples. Rows in a format without steps are accepted; they have no trace.

    Raises:
        UserError: there is no such data, or it has steps, but none of kind `cot_type`.
    """
    name = f"{dataset.name}@{dataset.revision}" if dataset.revision else dataset.name
    train_split, validation_split, cot_type, limit = (
        dataset.train_split,
        dataset.validation_split,
        dataset.cot_type,
        dataset.max_train_samples,
    )
    if name.startswith(BUILTIN):
        if "/" in name:
            raise UserError(f"'{name}' names one split, but training needs two; use '{name.partition('/')[0]}'")
        train = builtin_stream(name, train_split, cot_type, dataset.mini, limit)
        validation = builtin_stream(name, validation_split, cot_type, dataset.mini, None)
        shape = [train.source, validation.source, cot_type, str(limit), dataset.mini.model_dump_json()]
        return Splits(train.source, lambda: shape, lambda: (train, validation.load()))
    rules = Rules(cot_type, dataset.on_bad_row, limit, need_trace=True, answer_type=dataset.answer_type)
    ruled = [train_split, validation_split, cot_type, dataset.on_bad_row, str(limit), dataset.answer_type]
    try:
        apart = open_split(name, validation_split, cot_type, separate_split=True)
    except NoSuchSplitError:
        if canonical_split(validation_split) != "validation":
            raise  # the configuration names another split explicitly
        whole = open_split(name, train_split, cot_type)
        return Splits(whole.source, lambda: [*ruled, whole.stem, whole.content()], lambda: _hold_out(whole, train_split, rules))
    opened = open_split(name, train_split, cot_type)

    def content() -> list[str]:
        return [*ruled, opened.stem, opened.content(), apart.stem, apart.content()]

    def read() -> tuple[Stream, Loaded]:
        validation = stream(apart, validation_split, replace(rules, limit=None, need_trace=False)).load()
        asked = frozenset(question_key(example.question) for example in validation.examples)
        return stream(opened, train_split, replace(rules, exclude=asked)), validation

    return Splits(opened.source, content, read)


def _hold_out(opened: Opened, split: str, rules: Rules) -> tuple[Stream, Loaded]:
    """Return the rows without a validation question for training, and the last rows for validation.

    The source is read twice, so that only the last rows stay in memory.
    """
    everything, limit = stream(opened, split, replace(rules, limit=None)), rules.limit
    last: deque[Example] = deque(maxlen=HELD_OUT_ROWS)
    total = 0
    for example in everything:
        last.append(example)
        total += 1
    count = min(HELD_OUT_ROWS, total // 10)
    if count == 0:
        raise UserError(f"{opened.source} has {total} usable rows, too few to hold out a tenth; give at least 10")
    validation = list(last)[-count:]
    asked = {question_key(example.question) for example in validation}
    left_out = everything.tally

    def others(tally: Tally) -> Iterator[Example]:
        tally.bad, tally.untraced, tally.unanswerable = left_out.bad, left_out.untraced, left_out.unanswerable
        given = 0
        for example in islice(everything, total - count):
            if question_key(example.question) in asked:
                tally.excluded += 1
            elif limit is None or given < limit:
                given += 1
                yield example

    def note(tally: Tally) -> str:
        repeated = f", {tally.excluded} rows left out that repeat them" if tally.excluded else ""
        no_number = f", {left_out.unanswerable} rows left out that are answered by no number" if left_out.unanswerable else ""
        return f"the last {count} rows are held out for validation{repeated}{no_number}"

    held_out = Loaded(validation, f"{opened.source} (last {count} rows)", fingerprint(validation))
    train = Stream(opened.source, others, note)
    return train, replace(held_out, note=note(Tally()))
