"""Reference numbers that results are compared with (`data/reference.yaml`); each row names its source.

reference = load_reference()
rows = reference.matching(aggregate, source="paper")
"""

from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

from pydantic import Field

from kava.config import CONFIG_DIR, load_config
from kava.config.differences import flatten
from kava.config.strict_yaml import load_yaml
from kava.report.aggregate_file import Aggregate
from kava.results import Record
from kava.runtime import shipped

Source = Literal["paper", "guide"]
# What an ablation changes.
_METHOD = ("latent.", "rkv.", "loss.", "lora.", "dataset.drop_last_step")
# What is asked of every method: the form of the traces, and answers as its own.
_MODE = ("dataset.cot_type", "evaluation.use_latent")


class Labels(Record):
    """Display names of methods, models and data sets; models and data sets are keyed by the last part of their hub name or path."""

    models: dict[str, str]
    datasets: dict[str, str]
    methods: dict[str, str]


class ReferenceRow(Record):
    """One published result. Accuracy and its deviation are in percent; `settings` are the configuration keys that make it an ablation."""

    source: Source
    where: str
    method: str
    model: str
    train_dataset: str
    dataset: str
    accuracy: float | None = Field(None, ge=0, le=100)
    accuracy_std: float | None = Field(None, ge=0)
    forward_passes: float | None = Field(None, gt=0)
    forward_passes_std: float | None = Field(None, ge=0)
    unconfirmed: bool = False
    settings: dict[str, Any] = Field(default_factory=dict)


class Reference(Record):
    """All reference rows, the display names, and the largest difference (in points of accuracy) that counts as reproduced."""

    tolerance_points: float = Field(gt=0)
    labels: Labels
    rows: list[ReferenceRow]

    def matching(self, aggregate: Aggregate, source: Source) -> list[ReferenceRow]:
        """Return the rows with the same method, model, training data and ablation, from one source."""
        identity = (aggregate.method, last_part(aggregate.model), last_part(aggregate.train_dataset))
        return [
            row
            for row in self.rows
            if row.source == source
            and (row.method, row.model, row.train_dataset) == identity
            and self._same_ablation(row, flatten(aggregate.config))
        ]

    def _same_ablation(self, row: ReferenceRow, config: dict[str, Any]) -> bool:
        """Return whether the row's own settings hold in `config` and no ablation setting of another row does."""
        others = [(key, value) for other in self.rows for key, value in other.settings.items() if key not in row.settings]
        own = all(config.get(key) == value for key, value in row.settings.items())
        return own and all(config.get(key) != value for key, value in others) and _as_published(row, config)

    def model_label(self, name: str) -> str:
        return self.labels.models.get(last_part(name), last_part(name))

    def dataset_label(self, name: str) -> str:
        return self.labels.datasets.get(last_part(name), last_part(name))

    def method_label(self, name: str) -> str:
        return self.labels.methods.get(name, name)


def _as_published(row: ReferenceRow, config: Mapping[str, Any]) -> bool:
    """Return whether a run answers in the published way, and one of KaVa has the published settings but for those of an ablation."""
    published = _published().get((last_part(row.model), last_part(row.train_dataset)), {})
    asked = (*_MODE, *(_METHOD if row.method == "kava" else ()))
    return all(config.get(key, value) == value for key, value in published.items() if key.startswith(asked) and key not in row.settings)


@lru_cache
def _published() -> dict[tuple[str, str], dict[str, Any]]:
    """Return the settings of `_METHOD` and `_MODE` of every shipped configuration of a run, by model and training data."""
    found = {}
    for path in sorted(shipped.shipped(CONFIG_DIR).glob("*.yaml")):
        config = load_config(path)
        settings = {key: value for key, value in flatten(config.to_dict()).items() if key.startswith((*_METHOD, *_MODE))}
        found[last_part(config.model.name), last_part(config.dataset.name)] = settings
    return found


@lru_cache
def load_reference() -> Reference:
    """Read the packaged reference numbers."""
    text = (resources.files("kava.report") / "data" / "reference.yaml").read_text(encoding="utf-8")
    return Reference.model_validate(load_yaml(text))


def last_part(name: str) -> str:
    """Return the last part of a name: the same for `meta-llama/Llama-3.2-1B-Instruct` and `/models/Llama-3.2-1B-Instruct/`."""
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] or name
