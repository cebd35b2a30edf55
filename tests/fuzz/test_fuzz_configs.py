"""Configurations and options as nobody would write them: one clear line, or a run that works."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from helpers.checks import make_trained
from helpers.fuzz_command import half_written, kava
from helpers.fuzz_inputs import INPUTS, ODD_VALUES, damage, edited, fuzz, places
from kava.config import Config, load_config
from kava.methods import EVICTIONS, METHODS

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1800)]

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
KEYS = tuple(sorted({str(place[-1]) for place in places(Config().to_dict())[1:]}))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("fuzz")
    (room / "taken").write_text("no directory can be made here")
    return room


def read(path: Path, room: Path) -> None:
    """A training that ends before its first step in any case, for want of a place: the line is about the file, or about the place."""
    kava("train", "--config", str(path), "--output_dir", str(room / "taken" / "run"), codes=(2,))
    assert sorted(entry.name for entry in room.iterdir()) == ["broken.yaml", "taken"]


def test_files(room: Path) -> None:
    @fuzz(INPUTS["configuration files"], whole=st.sampled_from(SHIPPED), change=damage())
    def check(whole: Path, change: Callable[[bytes], bytes]) -> None:
        (room / "broken.yaml").write_bytes(change(whole.read_bytes()))
        read(room / "broken.yaml", room)


def test_edits(room: Path) -> None:
    @fuzz(INPUTS["configurations edited"], text=edited(Config().to_dict(), KEYS))
    def check(text: str) -> None:
        (room / "broken.yaml").write_text(text)
        read(room / "broken.yaml", room)


def test_options(room: Path) -> None:
    """Words after a command, sense or not; the option parser's own refusals are several lines in a box."""
    names = st.sampled_from([f"{section}.{key}" for section, part in Config().to_dict().items() if isinstance(part, dict) for key in part])
    names |= st.sampled_from(["method", "seed", "config", "nonsense", "", "training", "a.b.c", "output_dir"])
    # The system itself takes no NUL in a word.
    texts = [str(json.loads(value)) if value.startswith('"') else value for value in ODD_VALUES if len(value) < 4_000]
    values = st.sampled_from([text for text in texts if "\0" not in text])

    @fuzz(INPUTS["options"], words=st.lists(st.tuples(names, values), max_size=3))
    def check(words: list[tuple[str, str]]) -> None:
        flags = [word for name, value in words for word in (f"--{name}", value)]
        kava("train", "--config", str(SHIPPED[0]), *flags, "--output_dir", str(room / "taken" / "run"), codes=(2,), boxed=True)
        assert sorted(entry.name for entry in room.iterdir()) in (["broken.yaml", "taken"], ["taken"])


# Values that mean something, on a scale that a test can afford.
SENSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "method": st.sampled_from(sorted(METHODS)),
    "latent.num_tokens": st.integers(0, 9), "latent.num_iterations": st.integers(0, 4), "latent.tokens_per_step": st.integers(1, 3),
    "dataset.drop_last_step": st.booleans(), "dataset.cot_type": st.sampled_from(["equation", "natural_language"]),
    "dataset.answer_prompt": st.sampled_from(["The answer is:", "=", " ", "answer", "7", "The answer is: ", "\n", "答案：", "a" * 300]),
    "dataset.max_length": st.integers(8, 120), "dataset.max_train_samples": st.integers(1, 12),
    "loss.kv_loss_type": st.sampled_from(["smooth_l1", "l1", "mse"]), "loss.layerwise_std": st.booleans(),
    "loss.use_projection": st.booleans(), "loss.kv_rope": st.sampled_from(["pre", "post"]),
    "loss.kv_parts": st.sampled_from(["both", "keys", "values"]),
    "loss.alpha2_kv": st.sampled_from([0, 1, 1e30]), "rkv.lambda": st.sampled_from([0, 0.1, 1]),
    "rkv.eviction": st.sampled_from(EVICTIONS),
    "lora.enabled": st.booleans(), "lora.r": st.integers(0, 9),
    "lora.target_modules": st.sampled_from(["auto", "q_proj", ["nothing"], [], ""]),
    "training.batch_size": st.integers(1, 9), "training.gradient_accumulation_steps": st.integers(1, 3),
    "training.optimizer": st.sampled_from(["adamw_torch", "sgd", "adafactor", "adamw_8bit", "adam", "adamw_torch_fused", ""]),
    "training.learning_rate": st.sampled_from([1e-3, 1e-300, 1e29]), "training.gradient_checkpointing": st.booleans(),
    "training.sort_by_length": st.booleans(), "training.max_bad_batches": st.integers(0, 2),
    "training.eval_steps": st.sampled_from([None, 1, 9]),
    "training.save_steps": st.sampled_from([None, 1, 9]), "training.save_total_limit": st.sampled_from([None, 1]),
    "evaluation.max_new_tokens": st.sampled_from([1, 4, 500]), "evaluation.validation_samples": st.integers(1, 3),
    "system.mixed_precision": st.sampled_from(["no", "bf16", "fp16"]),
    "model.dtype": st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
    "model.attn_implementation": st.sampled_from(["sdpa", "eager", "flash_attention_2"]), "system.device": st.sampled_from(["cpu", "cuda"]),
}  # fmt: skip


def test_trainings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Up to five settings of a tiny run at once: it takes its two steps and leaves a checkpoint, or says in one line why not."""
    room = tmp_path_factory.mktemp("trainings")
    make_trained(room)
    base = {
        "model.name": str(room / "base"), "dataset.mini.num_train": 12, "dataset.mini.num_eval": 2, "dataset.mini.modulus": 5,
        "dataset.mini.max_steps": 3, "lora.r": 4, "latent.num_tokens": 3, "training.max_steps": 2,
        "training.batch_size": 4, "evaluation.max_new_tokens": 3,
        "evaluation.validation_samples": 2, "system.mixed_precision": "no", "system.device": "cpu",
    }  # fmt: skip
    changes = st.lists(st.sampled_from(sorted(SENSIBLE)), min_size=1, max_size=5, unique=True).flatmap(
        lambda keys: st.fixed_dictionaries({key: SENSIBLE[key] for key in keys})
    )
    ended = {0: 0, 2: 0}

    @fuzz(INPUTS["configurations that train"], changed=changes)
    def check(changed: dict[str, Any]) -> None:
        shutil.rmtree(room / "run", ignore_errors=True)
        settings = base | changed
        if settings.get("method") in ("full_cot", "no_cot", "icot") and "latent.num_tokens" not in changed:
            del settings["latent.num_tokens"]
        (room / "config.yaml").write_text("{}")
        flags = [word for key, value in settings.items() for word in (f"--{key}", json.dumps(value))]
        code, _, _ = kava("train", "--config", str(room / "config.yaml"), "--output_dir", str(room / "run"), *flags)
        ended[code] += 1
        assert half_written(room / "run") == []
        assert (room / "run" / "best_checkpoint" / "kava_config.json").exists() or code == 2

    assert min(ended.values()) > 0, ended


def test_the_shipped_configurations_are_among_what_is_damaged() -> None:
    assert len(SHIPPED) >= 8
    assert all(load_config(path) for path in SHIPPED)
    assert yaml.safe_load(SHIPPED[0].read_text())
