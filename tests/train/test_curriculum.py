"""A curriculum that cannot end within its run is refused with the numbers, and each cure that is named cures it."""

import re
from typing import Any

import pytest
import yaml

from helpers.tiny import make_examples
from kava.config import Config, build_config, config_path, load_config
from kava.data.collate import Collator
from kava.errors import UserError
from kava.experiment.suite import read_suite, suite_path
from kava.methods import METHODS
from kava.tools.plan.shapes import known
from kava.train.curriculum import Schedule, schedule, unending
from kava.train.train import train


def config_of(method: str, **settings: Any) -> Config:
    return build_config(
        {"method": method}, "a test", {f"training.{key}" if "." not in key else key: value for key, value in settings.items()}
    )


@pytest.mark.parametrize(
    ("settings", "longest", "expected"),
    [
        ({"method": "icot", "epochs": 10}, 72, Schedule(10, 9, 100)),
        ({"method": "icot", "epochs": 10}, 73, Schedule(10, 10, 100)),
        ({"method": "icot", "epochs": 10, "remove_all_beyond": 39}, 150, Schedule(10, 5, 100)),
        ({"method": "icot", "epochs": 10, "remove_all_beyond": 39}, 20, Schedule(10, 3, 100)),
        ({"method": "icot", "max_steps": 7, "epochs_per_stage": 0.2, "tokens_per_stage": 10}, 30, Schedule(2, 3, 7)),
        ({"method": "coconut", "epochs": 10, "latent.num_tokens": 24}, 150, Schedule(10, 12, 100)),
        ({"method": "coconut", "epochs": 10, "latent.num_tokens": 6, "epochs_per_stage": 2}, 150, Schedule(20, 3, 100)),
        ({"method": "coconut", "epochs": 10, "latent.num_tokens": 5, "gradient_accumulation_steps": 2}, 150, Schedule(5, 3, 50)),
        ({"method": "kava"}, 150, None),
    ],
)  # fmt: skip
def test_when_stages_begin(settings: dict[str, Any], longest: int, expected: Schedule | None) -> None:
    assert schedule(config_of(**settings), 1280, longest) == expected


UNENDING = [
    ({"method": "icot", "epochs": 10}, 73, "the longest trace, 73 tokens, is gone at stage 10, 100 steps after the start"),
    ({"method": "icot", "epochs": 10}, 400, "is gone at stage 50, 500 steps after the start .10 steps a stage., and the run has 100"),
    ({"method": "icot", "max_steps": 30, "epochs_per_stage": 0.7}, 73, "70 steps after the start .7 steps a stage., and the run has 30"),
    ({"method": "coconut", "epochs": 10, "latent.num_tokens": 24}, 50, "all 24 latents are there at stage 12, 120 steps after the start"),
    ({"method": "coconut", "epochs": 0.5, "latent.num_tokens": 24}, 50, "and the run has 5; set training.epochs above 12.1"),
]


@pytest.mark.parametrize(("settings", "longest", "said"), UNENDING)
def test_one_that_cannot_end_is_named_with_cures_that_work(settings: dict[str, Any], longest: int, said: str) -> None:
    problem = unending(config_of(**settings), 1280, longest)
    assert problem is not None
    assert re.search(said, problem), problem
    cures = re.findall(r"([a-z_.]+) (?:to at (?:least|most)|above) ([0-9.,]+[0-9])", problem.partition("; set ")[2])
    assert cures
    for key, value in cures:
        number: Any = yaml.safe_load(value)
        cured = config_of(**{**settings, key: number + 0.01 if key == "training.epochs" else number})
        assert unending(cured, 1280, longest) is None, (key, value)
    for name, value in cures:
        # No wider than needed: one step further it is refused again.
        if name in ("training.tokens_per_stage", "latent.num_tokens"):
            further = int(value) + (-1 if name.endswith("stage") else 1)
            assert unending(config_of(**{**settings, name: further}), 1280, longest) is not None


def test_beyond_its_limit_icot_removes_all() -> None:
    (example,) = make_examples(1, steps=(20,))
    collator = Collator(METHODS["icot"], 0, 4, num_latents=0, tokens_per_stage=8, remove_all_beyond=39)
    trace = example.cot(drop_last_step=False)
    assert len(trace) > 50
    for stage, left in ((0, trace), (4, trace[32:]), (5, [])):
        collator.stage = stage
        assert collator.collate([example]).student.ids.tolist() == [[*left, *example.answer]]


@pytest.mark.parametrize("suite", ["paper-table1", "mini-table1", "mini-short", "mini-search"])
def test_the_suites_end_theirs_within_the_run(suite: str) -> None:
    """On the data's rows and longest traces: the paper's as `kava plan` knows them, 60 tokens for the mini experiment's sentences."""
    content = read_suite(suite_path(suite))
    staged = 0
    for variant, shared in content.variants.items():
        for run, overrides in content.runs.items():
            settings = {**shared, **overrides, **content.exceptions.get(variant, {}).get(run, {})}
            config = load_config(config_path(settings.pop("config", content.config)), settings)
            published = known()["datasets"].get(config.dataset.name)
            mini = (50_000, 60 if variant == "natural_language" else 24)
            rows, longest = (published["rows"], published["longest"]["cot"]) if published else mini
            assert unending(config, rows, longest) is None, (suite, overrides)
            staged += schedule(config, rows, longest) is not None
    assert staged >= 2


def test_a_run_is_refused_before_its_model_is_built(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAVA_CACHE", str(tmp_path / "cache"))
    tiny = {
        "model.mini.pretrain_steps": 0, "model.mini.hidden_size": 32, "model.mini.num_layers": 2, "dataset.mini.num_train": 40,
        "dataset.mini.num_eval": 8, "system.mixed_precision": "no", "training.max_steps": 2, "latent.num_tokens": 8,
    }  # fmt: skip
    with pytest.raises(UserError, match="the curriculum of coconut cannot end within the run: all 8 latents are there at stage 4"):
        train(build_config({"method": "coconut"}, "a test", tiny), tmp_path / "run", quiet=True)
