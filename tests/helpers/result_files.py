"""Result files for tests, written by the package's own writer."""

from pathlib import Path
from typing import Any

from kava.config import Config, load_config
from kava.results import DataInfo, Metrics, Result, Row, RunInfo, result_path, write_result
from kava.results.statistics import wilson_interval

GUIDE_CONFIG = Path(__file__).parents[2] / "configs" / "llama1b_aug.yaml"


def make_result(
    seed: int = 42, dataset: str = "gsm8k", correct: int = 745, total: int = 1319, passes: float = 6.9, config: Config | None = None,
    name: str | None = "llama1b_aug", data_fingerprint: str = "d41d8cd98f00b204", overrides: dict[str, Any] | None = None,
) -> Result:  # fmt: skip
    """A result as the evaluator would write it, for `seed` of a shipped configuration (or `config`)."""
    config = config or load_config(GUIDE_CONFIG, {"training.seed": seed, **(overrides or {})})
    return Result(
        dataset=dataset,
        metrics=Metrics(
            accuracy=correct / total, accuracy_ci95=list(wilson_interval(correct, total)), correct=correct, total=total,
            forward_passes=passes, generated_tokens=3.5, seconds_per_question=0.25, cache_bytes_per_question=1024.0,
        ),
        run=RunInfo(
            name=name, method=config.method, seed=seed, config=config.to_dict(),
            config_fingerprint=config.fingerprint(), model=config.model.name,
        ),
        data=DataInfo(source="openai/gsm8k", split="test, all rows", fingerprint=data_fingerprint, rows=total, bad_rows=0),
        provenance={"command_line": "evaluate.py --eval_dataset gsm8k", "commit": "0123abc", "packages": {"torch": "2.13.0"}},
    )  # fmt: skip


def make_row(number: int = 0, **changes: Any) -> Row:
    content = {
        "id": str(number), "question": "2 + 3?", "gold": "5", "prediction": "5", "text": "The answer is: 5",
        "correct": True, "forward_passes": 6, "generated_tokens": 2,
    }  # fmt: skip
    return Row.model_validate(content | changes)


def write_seed_dirs(root: Path, correct: dict[str, list[int]], seeds: tuple[int, ...] = (42, 123, 456), **kwargs: Any) -> list[Path]:
    """`seed_<s>/results_<dataset>.yaml` for each data set's list of right answers; returns the seeds' directories."""
    directories = [root / f"seed_{seed}" for seed in seeds]
    for index, (seed, directory) in enumerate(zip(seeds, directories, strict=True)):
        for dataset, counts in correct.items():
            result = make_result(seed, dataset, counts[index], 1000, passes=6.8 + 0.1 * index, **kwargs)
            write_result(result_path(directory, dataset), result)
    return directories
