"""Loads what its arguments say in a process of its own, whose libraries read HF_HOME and HF_ENDPOINT when they are imported.

python hub_cases.py "model()" "data('openai/gsm8k')"  ->  a line [result or message, seconds] for each
"""

import json
import shutil
import sys
import time
from pathlib import Path

from huggingface_hub import constants, get_session

from helpers.loading import train_validation
from kava.config import build_config
from kava.data.sources.load import load_benchmark
from kava.errors import UserError
from kava.runtime.hub import commit_of

MODEL, DATA = "meta-llama/Llama-3.2-1B-Instruct", "openai/gsm8k"


def model(name: str = MODEL, **options: str) -> str | None:
    from kava.model.build import load_base
    from kava.model.tokenizer import load_tokenizer

    config = build_config({"model": {"name": name, **options}}, "test")
    load_tokenizer(name, revision=config.model.revision)
    load_base(name, config)
    return commit_of(name, config.model.revision)


def data(name: str = DATA) -> str:
    return load_benchmark("gsm8k", name).source


def fetch(path: str) -> int:
    """A request that the server's list shows, to tell what came before from what came after."""
    return get_session().get(f"{constants.ENDPOINT}/{path}").status_code


def copy(target: str) -> str:
    return str(shutil.copytree(constants.HF_HOME, target, symlinks=True))


def cut(size: int) -> int | None:
    """Cut the cached weights off, or away."""
    weights = next(Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*/model.safetensors")).resolve()
    return weights.write_bytes(weights.read_bytes()[:size]) if size else weights.unlink()


def training(name: str) -> list[str]:
    return [part.source for part in train_validation(name, cot_type="equation")]


for case in sys.argv[1:]:
    start = time.perf_counter()
    try:
        result = eval(case)  # the test's own words
    except UserError as error:
        result = f"UserError: {error}"
    print(json.dumps([result, time.perf_counter() - start]), flush=True)
