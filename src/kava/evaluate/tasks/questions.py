"""What the harness's task files beside this one call: the questions as `kava evaluate` loads them, and its way to mark an answer.

kava lm-eval --model_args pretrained=RUN --tasks kava_gsm8k --metadata '{"data_dir": "data"}'
"""

from typing import Any


def gsm8k(data_dir: str | None = None, **_: Any) -> Any:
    """GSM8K's test questions, from the hub or from a local directory."""
    return _questions("gsm8k", data_dir)


def gsm8k_hard(data_dir: str | None = None, **_: Any) -> Any:
    """GSM8K-Hard."""
    return _questions("gsm8k-hard", data_dir)


def svamp(data_dir: str | None = None, **_: Any) -> Any:
    """SVAMP, all of what the source holds."""
    return _questions("svamp", data_dir)


def mark(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 where the number in the answer equals the gold one by value."""
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
