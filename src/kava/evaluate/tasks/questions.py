"""Functions that the harness's task files in this directory call: load questions and grade answers as `kava evaluate` does.

kava lm-eval --model_args pretrained=RUN --tasks kava_gsm8k --metadata '{"data_dir": "data"}'
"""

from typing import Any


def gsm8k(data_dir: str | None = None, **_: Any) -> Any:
    """Load GSM8K's test questions, from the hub or from a local directory."""
    return _questions("gsm8k", data_dir)


def gsm8k_hard(data_dir: str | None = None, **_: Any) -> Any:
    """Load the GSM8K-Hard questions."""
    return _questions("gsm8k-hard", data_dir)


def svamp(data_dir: str | None = None, **_: Any) -> Any:
    """Load all SVAMP questions of the source."""
    return _questions("svamp", data_dir)


def mark(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return accuracy 1 if the number in the answer equals the gold answer by value, else 0."""
    from kava.data.answers import answers_equal, extract_answer

    return {"accuracy": float(answers_equal(extract_answer(results[0], doc["answer_prompt"]), doc["gold"]))}


def _questions(name: str, data_dir: str | None) -> Any:
    from datasets import Dataset, DatasetDict

    from kava.config import Config
    from kava.data.sources.load import load_benchmark

    config = Config()
    loaded = load_benchmark(name, data_dir or config.evaluation.datasets[name])
    prompt = config.dataset.answer_prompt
    rows = [{"question": item.question, "gold": item.answer, "id": item.id, "answer_prompt": prompt} for item in loaded.examples]
    return DatasetDict({"test": Dataset.from_list(rows)})
