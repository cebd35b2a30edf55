"""Checks of the shipped configurations, the built-in problems, and the benchmark files in KAVA_DATA_DIR."""

import os
import re
from itertools import combinations
from pathlib import Path

from kava.config import CONFIG_DIR, Config, load_config
from kava.data.mini.problems import generate
from kava.data.sources.load import load_benchmark
from kava.errors import UserError
from kava.experiment.suite import SUITE_DIR, plans_of, read_suite
from kava.runtime import shipped
from kava.tools.smoke.lab import PROBLEMS, CheckFailedError, Information, Lab

DATA_DIR_VARIABLE = "KAVA_DATA_DIR"


def configurations(_: Lab) -> str:
    """Check that every shipped configuration and suite is valid."""
    paths = shipped.listed(CONFIG_DIR)
    suites = shipped.listed(SUITE_DIR)
    if not paths:
        raise CheckFailedError(f"no configuration in {shipped.shipped(CONFIG_DIR)}")
    problems = []
    for path in [*paths, *suites]:
        try:
            if path in paths:
                load_config(path)
            else:
                plans_of(read_suite(path), Path("outputs"), {}, source=f"suite {path}")
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise CheckFailedError("; ".join(problems))
    return f"{len(paths)} configurations valid ({', '.join(path.stem for path in paths)}); {len(suites)} suites"


def built_in_data(lab: Lab) -> str:
    """Check that traces end in the answer, that splits do not overlap, and that the tokenizer restores every text."""
    tokenizer = lab.trained.tokenizer
    splits = {split: generate(split, PROBLEMS) for split in ("train", "validation", "test")}
    questions = [{example.question for example in examples} for examples in splits.values()]
    shared = sum(len(first & second) for first, second in combinations(questions, 2))
    examples = [example for split in splits.values() for example in split]
    wrong = sum(re.findall(r"=(-?\d+)>>", example.steps[-1])[-1] != example.answer for example in examples)
    texts = [text for example in examples for text in (example.question, *example.steps)]
    lost = sum(tokenizer.decode(tokenizer(text).input_ids) != text for text in texts)
    if shared or wrong or lost:
        counts = f"{shared} questions shared by splits, {wrong} traces that miss their answer"
        raise CheckFailedError(f"{counts}, {lost} texts not restored by the tokenizer")
    return (
        f"{len(examples)} problems in {len(splits)} splits, 0 shared; traces end in their answers; {len(texts)} texts survive the tokenizer"
    )


def local_data(_: Lab) -> str | Information:
    """Check the benchmark files in the directory that KAVA_DATA_DIR names."""
    name = os.environ.get(DATA_DIR_VARIABLE)
    if not name:
        return Information(f"{DATA_DIR_VARIABLE} is not set: no local benchmark files to look at")
    if not Path(name).is_dir():
        raise CheckFailedError(f"{DATA_DIR_VARIABLE}={name} is no directory")
    found, absent = [], []
    for dataset in Config().evaluation.datasets:
        try:
            found.append(f"{dataset} {len(load_benchmark(dataset, name).examples)}")
        except UserError as error:
            absent.append(str(error))
    if not found:
        raise CheckFailedError(f"{DATA_DIR_VARIABLE}={name} holds no benchmark: {absent[0]}")
    missing = f"; {len(absent)} absent" if absent else ""
    return f"{name}: {', '.join(found)} questions{missing}"
