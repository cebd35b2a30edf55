"""A curriculum that cannot end within its run is refused with the numbers, and each cure that is named cures it."""

import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import yaml

from helpers.tiny import make_examples
from kava.config import Config, build_config, config_path, load_config
from kava.data.collate import Collator
from kava.data.sequences import EncodedExample
from kava.errors import UserError
from kava.experiment.suite import read_suite, suite_path
from kava.methods import METHODS
from kava.tools.plan.shapes import known
from kava.train.curriculum import Curriculum, Schedule, schedule, unreachable_stage
from kava.train.train import train

PLAIN = {
    "tokens_per_stage": 8,
    "epochs_per_stage": 1,
    "remove_all_beyond": None,
    "removal_smoothing": None,
    "trailing_stage": False,
    "reset_optimizer": False,
}


def config_of(method: str, **settings: Any) -> Config:
    """Eight tokens or two latents a stage of one epoch, where nothing else is said."""
    return published(method, **{**PLAIN, **settings})


def published(method: str, **settings: Any) -> Config:
    """What a method's authors have, where nothing else is said."""
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
        ({"method": "coconut", "epochs": 10, "latent.num_tokens": 6, "trailing_stage": True}, 9, Schedule(10, 4, 100)),
        ({"method": "icot", "epochs": 10, "tokens_per_stage": 1, "epochs_per_stage": 0.1, "remove_all_beyond": 8}, 99, Schedule(1, 9, 100)),
        ({"method": "kava"}, 150, None),
    ],
)  # fmt: skip
def test_when_stages_begin(settings: dict[str, Any], longest: int, expected: Schedule | None) -> None:
    assert schedule(config_of(**settings), 1280, longest) == expected


UNENDING = [
    ({"method": "icot", "epochs": 10}, 73, "the longest trace, 73 tokens, is fully removed at stage 10, 100 steps after the start"),
    (
        {"method": "icot", "epochs": 10},
        400,
        "is fully removed at stage 50, 500 steps after the start .10 steps a stage., and the run has 100",
    ),
    ({"method": "icot", "max_steps": 30, "epochs_per_stage": 0.7}, 73, "70 steps after the start .7 steps a stage., and the run has 30"),
    (
        {"method": "coconut", "epochs": 10, "latent.num_tokens": 24},
        50,
        "all 24 latents are there, and no step, at stage 12, 120 steps after the start",
    ),
    ({"method": "coconut", "epochs": 10, "latent.num_tokens": 20, "trailing_stage": True}, 50, "at stage 11, 110 steps after the start"),
    (
        {"method": "icot", "tokens_per_stage": 1, "max_steps": 15},
        50,
        "removed at stage 50, .* set training.tokens_per_stage to at least 50, or",
    ),
    ({"method": "icot", "tokens_per_stage": 1, "batch_size": 1, "max_steps": 60}, 50, "training.epochs_per_stage to at most 0.0007, or"),
    ({"method": "coconut", "epochs": 0.5, "latent.num_tokens": 24}, 50, "and the run has 5; set training.epochs above 12.1"),
]


@pytest.mark.parametrize(("settings", "longest", "said"), UNENDING)
def test_one_that_cannot_end_is_named_with_cures_that_work(settings: dict[str, Any], longest: int, said: str) -> None:
    problem = unreachable_stage(config_of(**settings), 1280, longest)
    assert problem is not None
    assert re.search(said, problem), problem
    cures = re.findall(r"([a-z_.]+) (?:to at (?:least|most)|above) ([0-9.,]+[0-9])", problem.partition("; set ")[2])
    assert cures
    for key, value in cures:
        number: Any = yaml.safe_load(value)
        cured = config_of(**{**settings, key: number + 0.01 if key == "training.epochs" else number})
        assert unreachable_stage(cured, 1280, longest) is None, (key, value)
    for name, value in cures:
        # No wider than needed: one step further it is refused again.
        if name in ("training.tokens_per_stage", "latent.num_tokens"):
            further = int(value) + (-1 if name.endswith("stage") else 1)
            assert unreachable_stage(config_of(**{**settings, name: further}), 1280, longest) is not None


def test_beyond_its_limit_icot_removes_all() -> None:
    (example,) = make_examples(1, steps=(20,))
    collator = Collator(METHODS["icot"], 0, 4, num_latents=0, tokens_per_stage=8, remove_all_beyond=39)
    trace = example.cot(drop_last_step=False)
    assert len(trace) > 50
    for stage, left in ((0, trace), (4, trace[32:]), (5, [])):
        collator.stage = stage
        assert collator.collate([example]).student.ids.tolist() == [[*left, *example.answer]]


def icot_s_own_loop(steps_per_epoch: int, epochs: int, per_epoch: int, beyond: int) -> list[float]:
    """How many tokens each step removes, in the order that the code of arXiv 2405.14838 counts them."""
    removed: list[float] = []
    scheduled, counter, wait = 0.0, 0, round(steps_per_epoch / per_epoch)
    for _ in range(epochs * steps_per_epoch):
        if counter == wait:
            scheduled, counter = scheduled + 1, 0
        counter += 1
        if scheduled >= beyond:
            scheduled = math.inf
        removed.append(scheduled)
    return removed


def test_icot_as_published_removes_one_token_at_a_time() -> None:
    """Eight an epoch, each when its own code does, and all from 39 on."""
    (example,) = make_examples(1, steps=(20,))
    trace = example.cot(drop_last_step=False)
    config = published("icot", epochs=6, batch_size=10)
    options = {name: getattr(config.training, name) for name in ("tokens_per_stage", "remove_all_beyond")}
    collator = Collator(METHODS["icot"], 0, 4, num_latents=0, **options)
    curriculum = Curriculum(collator, schedule(config, 410, len(trace)))
    expected = icot_s_own_loop(41, 6, 8, 39)
    assert expected[-1] == math.inf
    for step, removed in enumerate(expected):
        left = [] if removed == math.inf else trace[int(removed) :]
        assert curriculum([example], step).student.ids.tolist() == [[*left, *example.answer]], step
        assert curriculum.begins(step) is (step > 0 and expected[step] != expected[step - 1])


@pytest.mark.parametrize("method", METHODS)
def test_what_a_configuration_does_not_name_is_as_published(method: str) -> None:
    """iCoT's `run_gsm8k.sh`: 8 tokens an epoch, smoothing 4; Coconut's `gsm_coconut.yaml`: three epochs a stage."""
    expected = {
        "icot": PLAIN
        | {"tokens_per_stage": 1, "epochs_per_stage": 0.125, "remove_all_beyond": 38, "removal_smoothing": 4}
        | {"reset_optimizer": True},
        "coconut": PLAIN | {"epochs_per_stage": 3, "trailing_stage": True, "reset_optimizer": True},
    }.get(method, PLAIN)
    for config in (published(method), published(method, epochs=7), load_config("configs/mini.yaml", {"method": method})):
        assert {name: getattr(config.training, name) for name in PLAIN} == expected
    assert published(method, epochs_per_stage=2).training.epochs_per_stage == 2


def test_removal_smoothing_is_a_geometric_draw_of_example_and_step() -> None:
    """P(k) = (1 - exp(-x)) exp(-k x), whatever else is in the batch; x = 4, the published one, leaves 98 % alone."""
    examples = [replace(example, seed=seed) for seed, example in enumerate(make_examples(1, steps=(30,)) * 4000)]
    whole = len(examples[0].cot(drop_last_step=False))

    def offsets(smoothing: float, step: int, chosen: list[EncodedExample]) -> list[int]:
        collator = Collator(METHODS["icot"], 0, 4, num_latents=0, removal_smoothing=smoothing)
        batch = Curriculum(collator, Schedule(100, 9, 1000), seed=7)(chosen, step)
        return [whole - int(length) for length in batch.student.cot_length]

    drawn = offsets(0.5, 3, examples)
    for k in range(6):
        expected = (1 - math.exp(-0.5)) * math.exp(-0.5 * k)
        assert drawn.count(k) / len(drawn) == pytest.approx(expected, abs=4 * math.sqrt(expected / len(drawn)))
    assert offsets(0.5, 3, examples[100:101]) == drawn[100:101]
    assert offsets(0.5, 4, examples) != drawn
    assert offsets(4.0, 3, examples).count(0) / len(examples) == pytest.approx(1 - math.exp(-4), abs=0.01)


def coconut_s_own_sample(steps: list[list[int]], stage: int, max_stage: int, per_step: int) -> tuple[int, list[int]]:
    """Latents, and the tokens written behind them, as the code of arXiv 2412.06769 takes them (`pad_latent_to_max`)."""
    skipped, latents = (10_000, max_stage) if stage > max_stage else (stage, stage)
    return latents * per_step, [token for step in steps[skipped:] for token in step]


@pytest.mark.parametrize("stage", range(6))
def test_coconut_s_trailing_stage_keeps_the_steps_behind_the_last_latent(stage: int) -> None:
    (example,) = make_examples(1, steps=(5,))
    config = published("coconut", **{"latent.num_tokens": 6, "epochs_per_stage": 2, "epochs": 10})
    stages = schedule(config, 1280, 50)
    assert stages is not None
    assert stages.last == 4
    collator = Collator(METHODS["coconut"], 0, 4, num_latents=6, tokens_per_step=2, trailing_stage=True)
    batch = Curriculum(collator, stages)([example], stage * stages.steps_per_stage)
    latents, written = coconut_s_own_sample(example.steps, stage, 3, 2)
    assert (batch.num_latents, batch.student.ids[0].tolist()) == (latents, [*written, *example.answer])


def test_uniform_prob_draws_a_stage_for_its_share_of_examples() -> None:
    """From 0 to as many as the example has steps, as Coconut's own code does: each example, whatever else is in the batch."""
    stages, count = Schedule(1000, 4, 5000), 3000
    collator = Collator(METHODS["coconut"], 0, 4, num_latents=6, trailing_stage=True)

    def trained(examples: list[EncodedExample], step: int, uniform_prob: float = 0.3) -> list[tuple[int, tuple[int, ...]]]:
        """Latents of each example, and the tokens written behind them."""
        batch = Curriculum(collator, stages, uniform_prob, seed=5)(examples, step)
        assert batch.num_latents == 6
        latents = [6] * len(examples) if batch.latent_mask is None else batch.latent_mask.sum(1).tolist()
        lengths = batch.student.cot_length.tolist()
        return [(own, tuple(ids[:length].tolist())) for own, ids, length in zip(latents, batch.student.ids, lengths, strict=True)]

    for steps in (2, 4, 7):
        examples = [replace(one, seed=seed) for seed, one in enumerate(make_examples(1, steps=(steps,)) * count)]
        expected: Counter[tuple[int, tuple[int, ...]]] = Counter()
        for stage, share in [(4, 0.7), *((drawn, 0.3 / (steps + 1)) for drawn in range(steps + 1))]:
            latents, written = coconut_s_own_sample(examples[0].steps, stage, 3, 2)
            expected[latents, tuple(written)] += share  # type: ignore[assignment]
        seen = trained(examples, 4500)
        shares = {key: number / count for key, number in Counter(seen).items()}
        assert shares == pytest.approx(expected, abs=4 * math.sqrt(0.25 / count))
        assert trained(examples[100:103], 4500) == seen[100:103]
        assert trained(examples, 4501) != seen
        assert trained(examples, 4500) == seen
        assert set(trained(examples, 4500, 0.0)) == {(6, ())}


def test_without_uniform_prob_a_batch_has_the_latents_of_its_stage() -> None:
    collator = Collator(METHODS["coconut"], 0, 4, num_latents=6, trailing_stage=True)
    for stage, latents in enumerate((0, 2, 4, 6, 6)):
        batch = Curriculum(collator, Schedule(10, 4, 50))(make_examples(3), 10 * stage)
        assert (batch.num_latents, batch.latent_mask) == (latents, None)


def test_uniform_prob_draws_icot_s_stages_too() -> None:
    examples = [replace(one, seed=seed) for seed, one in enumerate(make_examples(1, steps=(9,)) * 200)]
    collator = Collator(METHODS["icot"], 0, 4, num_latents=0, tokens_per_stage=3)
    batch = Curriculum(collator, Schedule(10, 20, 500), uniform_prob=0.5)(examples, 250)
    whole = len(examples[0].cot(drop_last_step=False))
    assert batch.latent_mask is None
    assert set(batch.student.cot_length.tolist()) == {max(whole - 3 * stage, 0) for stage in range(21)}


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
            assert unreachable_stage(config, rows, longest) is None, (suite, overrides)
            staged += schedule(config, rows, longest) is not None
    assert staged >= 2


def test_a_run_is_refused_before_its_model_is_built(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAVA_CACHE", str(tmp_path / "cache"))
    tiny = {
        "model.mini.pretrain_steps": 0, "model.mini.hidden_size": 32, "model.mini.num_layers": 2, "dataset.mini.num_train": 40,
        "dataset.mini.num_eval": 8, "system.mixed_precision": "no", "training.max_steps": 2, "latent.num_tokens": 8,
    }  # fmt: skip
    with pytest.raises(
        UserError, match="the curriculum of coconut cannot end within the run: all 8 latents are there, and no step, at stage 5"
    ):
        train(build_config({"method": "coconut"}, "a test", tiny), tmp_path / "run", quiet=True)
