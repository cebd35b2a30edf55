"""One way to a trained model, one place that chooses the device."""

from pathlib import Path

import pytest
import torch

from helpers.checks import make_trained
from helpers.tiny import lora_config
from kava.checkpoint import files, load_checkpoint, open_checkpoint, results_directory, save_checkpoint
from kava.errors import UserError
from kava.model.build import load_base
from kava.runtime.device import choose_device


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("asked", "gpus", "rank", "chosen"),
    [
        (None, 0, 0, "cpu"), ("auto", 0, 0, "cpu"), ("cpu", 2, 0, "cpu"), (None, 1, 0, "cuda:0"),
        ("auto", 2, 1, "cuda:1"), ("cuda", 2, 1, "cuda:1"), ("cuda:0", 2, 1, "cuda:0"),
    ],
)  # fmt: skip
def test_a_device_is_chosen(monkeypatch: pytest.MonkeyPatch, asked: str | None, gpus: int, rank: int, chosen: str) -> None:
    pretend_gpus(monkeypatch, gpus)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    assert choose_device(asked) == chosen


@pytest.mark.parametrize(
    ("asked", "gpus", "sentence"),
    [
        ("cuda", 0, "system.device is cuda, but torch sees no GPU here; set it to auto or cpu"),
        ("cuda:1", 0, "system.device is cuda:1, but torch sees no GPU here"),
        ("cuda:2", 2, "system.device is cuda:2, but torch sees 2 GPUs here, counted from 0"),
        ("tpu", 1, "system.device 'tpu' is unknown; set it to auto, cpu, cuda$"),
    ],
)
def test_a_device_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch, asked: str, gpus: int, sentence: str) -> None:
    pretend_gpus(monkeypatch, gpus)
    with pytest.raises(UserError, match=sentence):
        choose_device(asked, "system.device")


def test_a_run_stands_for_its_best_checkpoint(tmp_path: Path) -> None:
    trained = make_trained(tmp_path)
    save_checkpoint(tmp_path / "run" / "best_checkpoint", trained)
    opened = open_checkpoint(tmp_path / "run", {"latent.num_iterations": 1}, device="cpu")
    reasoner = opened.reasoner()
    assert (reasoner.num_latents, reasoner.num_iterations) == (trained.config.latent.num_tokens, 1)
    assert opened.reasoner(2, 0).num_latents == 2
    assert reasoner.builder.prompt_ids == trained.builder.prompt_ids


@pytest.mark.parametrize("name", ["checkpoints/test", "outputs/llama1b_aug_seed_42"])
def test_where_nothing_was_trained_yet_it_says_train_first(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a quick test that failed, or before the first; with the folder and without, and no hub is asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    for _ in range(2):
        with pytest.raises(UserError, match=rf"'{name}' is not a checkpoint: .* train first \(train.py --output_dir {name}"):
            open_checkpoint(name)
        Path(name).mkdir(parents=True, exist_ok=True)


def test_a_typing_error_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`outputs/rnu` looks like owner/name, but `outputs` is here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("outputs").mkdir()
    with pytest.raises(UserError, match=r"'outputs/rnu' is not a checkpoint: it has no kava_config.json"):
        open_checkpoint("outputs/rnu")
    with pytest.raises(UserError, match=r"'nobody/nothing' is not a checkpoint: there is no such directory .* no such model on the hub"):
        open_checkpoint("nobody/nothing")


def test_results_on_a_download_do_not_go_into_the_hub_s_cache(tmp_path: Path) -> None:
    place = tmp_path / "hub" / "models--owner--name" / "snapshots" / ("0" * 40)
    save_checkpoint(place, make_trained(tmp_path))
    assert results_directory(place) == Path("outputs/owner--name")
    save_checkpoint(tmp_path / "run" / "best_checkpoint", make_trained(tmp_path))
    assert results_directory(tmp_path / "run") == tmp_path / "run"


def test_the_base_is_stored_for_the_device_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is loaded on the CPU is float32 there, also on a machine with a GPU."""
    trained, asked = make_trained(tmp_path), []
    save_checkpoint(tmp_path / "saved", trained)
    monkeypatch.setattr(files, "load_base", lambda base, config, device: asked.append(device) or load_base(base, config, device))
    for device in ("cpu", None):
        load_checkpoint(tmp_path / "saved", {"system.mixed_precision": "bf16"}, device)
    assert asked == ["cpu", "cpu"]
    config = lora_config(**{"system.mixed_precision": "bf16"})
    assert load_base(trained.base, config, "cuda:0").dtype == torch.bfloat16
    assert load_base(trained.base, config).dtype == torch.float32
