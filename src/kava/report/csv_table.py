"""Aggregates as CSV for a spreadsheet: a row per configuration and data set."""

import csv
import io
from collections.abc import Iterable

from kava.experiment.aggregate_file import Aggregate, DatasetSummary

COLUMNS = (
    "config", "model_name", "method", "model", "train_dataset", "dataset", "num_seeds", "seeds", "questions",
    "accuracy_mean", "accuracy_std", "accuracy_ci95_low", "accuracy_ci95_high",
    "forward_passes_mean", "forward_passes_std", "generated_tokens_mean", "generated_tokens_std",
    "seconds_per_question_mean", "seconds_per_question_std", "cache_bytes_per_question_mean", "config_fingerprint", "file",
)  # fmt: skip
# What a spreadsheet would take for a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def render_csv(found: Iterable[tuple[str, str, Aggregate]]) -> str:
    """CSV of (file, configuration name, aggregate); fractions and counts unrounded, empty where nothing was measured.

    It starts with a byte-order mark, without which Excel reads UTF-8 as something else.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    for file, name, aggregate in found:
        for dataset, summary in aggregate.datasets.items():
            values = _values(file, name, aggregate, dataset, summary)
            writer.writerow({column: _cell(values[column]) for column in COLUMNS})
    return "\ufeff" + stream.getvalue()


def _values(file: str, name: str, aggregate: Aggregate, dataset: str, summary: DatasetSummary) -> dict[str, object]:
    low, high = summary.accuracy_ci95 or (None, None)
    return {
        **aggregate.model_dump(include={"model_name", "method", "model", "train_dataset", "num_seeds", "config_fingerprint"}),
        **summary.model_dump(exclude={"data", "per_seed", "accuracy_ci95", "n"}),
        "config": name,
        "seeds": " ".join(map(str, aggregate.seeds)),
        "dataset": dataset,
        "accuracy_ci95_low": low,
        "accuracy_ci95_high": high,
        "file": file,
    }


def _cell(value: object) -> object:
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value
