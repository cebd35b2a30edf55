"""Checkpoints: the same logits bit for bit after saving and loading; damaged ones are refused; a failed write leaves the old one."""

import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest import MonkeyPatch
from safetensors.torch import save_file

from helpers.checks import check_saving, make_trained, outputs
from helpers.tiny import MINI, PROMPT, tiny_lm
from kava.checkpoint import ADAPTER, KAVA_CONFIG, PROJECTION, Trained, fitting, load_checkpoint, save_checkpoint
from kava.data.mini.tokenizer import build_mini_tokenizer
from kava.errors import UserError
from kava.model.build import projection_of
from kava.results import checkpoint_hash
from kava.runtime.atomic import MANIFEST, publish, recover, report_disk_errors, seal, verify
from kava.runtime.lock import locked
from kava.tools.session import check_config


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize(
    ("kind", "tied", "spare_rows"),
    [("llama", True, 0), ("llama", False, 0), ("llama", True, 10), ("llama", False, 10), ("qwen2", True, 0), ("gpt2", True, 0)],
)
def test_the_same_logits_bit_for_bit(tmp_path: Path, kind: str, tied: bool, spare_rows: int, lora: bool) -> None:
    check_saving(tmp_path, make_trained(tmp_path, kind, tied=tied, lora=lora, spare_rows=spare_rows))
    assert (tmp_path / "saved" / ADAPTER).exists() is lora


@pytest.mark.parametrize("method", ["full_cot", "codi", "coconut"])
def test_every_kind_of_method(tmp_path: Path, method: str) -> None:
    trained = make_trained(tmp_path, method=method)
    expected = outputs(trained)
    save_checkpoint(tmp_path / "saved", trained)
    for value, before in zip(outputs(load_checkpoint(tmp_path / "saved")), expected, strict=True):
        assert torch.equal(value, before)


def test_a_loaded_model_can_go_on_training(tmp_path: Path) -> None:
    trained = make_trained(tmp_path)
    save_checkpoint(tmp_path / "saved", trained)
    loaded = load_checkpoint(tmp_path / "saved")
    names = {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad}
    assert names == {name for name, parameter in trained.model.named_parameters() if parameter.requires_grad}


def test_an_adapter_is_small(tmp_path: Path) -> None:
    """Adapters and three rows, and not a copy of the embeddings."""
    trained = make_trained(tmp_path)
    save_checkpoint(tmp_path / "saved", trained)
    trainable = sum(p.numel() * 4 for p in trained.model.backbone.parameters() if p.requires_grad)
    stored = (tmp_path / "saved" / "adapter_model.safetensors").stat().st_size
    assert trainable <= stored < trainable + 10_000


def test_overrides_reach_the_loaded_model(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "saved", make_trained(tmp_path))
    loaded = load_checkpoint(tmp_path / "saved", {"latent.num_iterations": 1})
    assert loaded.model.settings.num_iterations == 1


def test_threads_are_those_of_who_loads_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "saved", make_trained(tmp_path))
    before = torch.get_num_threads()
    try:
        load_checkpoint(tmp_path / "saved")
        assert torch.get_num_threads() == before
        load_checkpoint(tmp_path / "saved", {"system.num_threads": before + 1})
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole")
    save_checkpoint(place / "saved", make_trained(place))
    return place / "saved"


@contextmanager
def damaged(path: Path, how: str) -> Iterator[None]:
    """Damage a file, and mend it afterwards."""
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    try:
        yield
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
def test_a_damaged_file_is_named(whole: Path, how: str) -> None:
    # The card has no checksum: it is written again with results.
    names = sorted(path.name for path in whole.iterdir() if path.name != "README.md")
    assert {"adapter_model.safetensors", ADAPTER, PROJECTION, KAVA_CONFIG, MANIFEST, "tokenizer.json"} <= set(names)
    for name in names:
        with damaged(whole / name, how), pytest.raises(UserError) as caught:
            load_checkpoint(whole)
        assert name in str(caught.value) or (name == MANIFEST and how == "flipped")
        assert "\n" not in str(caught.value)
    assert verify(whole) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "format"), ('{"format": "other/9"}', "format"), ("\xff not json", "cannot be read")],
)
def test_a_strange_configuration_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / KAVA_CONFIG).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=f"{KAVA_CONFIG}.*{message}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("edit", [{"use_dora": True}, {"alora_invocation_tokens": [1]}])
def test_a_variant_of_lora_is_refused(whole: Path, tmp_path: Path, edit: dict[str, object]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    (copy / ADAPTER).write_text(json.dumps(json.loads((copy / ADAPTER).read_text()) | edit))
    seal(copy)
    with pytest.raises(UserError, match="a variant of LoRA|does not fit"):
        load_checkpoint(copy)


def test_target_modules_that_are_no_regular_expression_do_not_fit(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    (copy / ADAPTER).write_text(json.dumps(json.loads((copy / ADAPTER).read_text()) | {"target_modules": "q_proj|("}))
    seal(copy)
    with pytest.raises(UserError, match="does not fit .*error: missing"):
        load_checkpoint(copy)


def test_memory_that_runs_out_says_nothing_of_a_checkpoint() -> None:
    with pytest.raises(torch.OutOfMemoryError), fitting("saved"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("manifest", ["[]", '{"files": []}', '{"files": {"a": 3}}', '{"files": {"a": {}}}', "{"])
def test_a_strange_manifest_is_a_problem_and_no_crash(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / MANIFEST).write_text(manifest)
    problem = verify(tmp_path)
    assert problem is not None
    assert MANIFEST in problem


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a checkpoint"):
        load_checkpoint(tmp_path / "nowhere")


def test_another_base_model_or_method_is_refused_by_name(tmp_path: Path) -> None:
    trained = make_trained(tmp_path)
    save_checkpoint(tmp_path / "saved", trained)
    with pytest.raises(UserError, match="saved was trained with method 'kava', not 'codi'; leave the override out"):
        load_checkpoint(tmp_path / "saved", {"method": "codi"})
    vocabulary = trained.model.backbone.causal_lm.get_input_embeddings().weight.shape[0]
    tiny_lm(vocabulary=vocabulary, tied=True, spread=0.2).save_pretrained(tmp_path / "base")
    with pytest.raises(
        UserError, match=r"the base model .*base is not the one that checkpoint .*saved was trained on: its weights have changed"
    ):
        load_checkpoint(tmp_path / "saved")


def test_a_project_may_be_moved_with_the_base_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration names the base as the user did, and the checkpoint where it was."""
    trained = make_trained(tmp_path / "here")
    trained.config.model.name = "base"
    save_checkpoint(tmp_path / "here" / "saved", trained)
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert load_checkpoint("saved").base == str(tmp_path / "there" / "base")


def test_the_base_may_be_moved_for_its_fingerprint_decides(tmp_path: Path) -> None:
    """What a run is called by stays as it was trained: the place of the base is no part of its configuration."""
    trained = make_trained(tmp_path)
    save_checkpoint(tmp_path / "saved", trained)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"base model of checkpoint .*saved is no longer in .*base: say where it is with --model.name"):
        load_checkpoint(tmp_path / "saved")
    overrides = {"model.name": str(tmp_path / "moved"), "latent.num_iterations": 1}
    again = load_checkpoint(tmp_path / "saved", overrides)
    assert (again.base, again.config.model.name) == (str(tmp_path / "moved"), trained.config.model.name)
    assert again.config.latent.num_iterations == 1
    assert overrides["model.name"] == str(tmp_path / "moved")
    vocabulary = trained.model.backbone.causal_lm.get_input_embeddings().weight.shape[0]
    tiny_lm(vocabulary=vocabulary, tied=True, spread=0.2).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="other is not the one that checkpoint .*saved was trained on"):
        load_checkpoint(tmp_path / "saved", {"model.name": str(tmp_path / "other")})


def test_a_built_in_base_that_is_gone_says_how_it_comes_back(tmp_path: Path) -> None:
    trained = make_trained(tmp_path)
    trained.config.model.name = "builtin:mini"
    save_checkpoint(tmp_path / "saved", trained)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="train with model.name builtin:mini and seed 42 again, or say where it is"):
        load_checkpoint(tmp_path / "saved")


def test_a_configuration_file_names_the_base_and_its_directory_does_not_matter(tmp_path: Path) -> None:
    trained = make_trained(tmp_path)
    other = trained.config.model_copy(update={"model": trained.config.model.model_copy(update={"name": "meta-llama/x"})})
    check_config(trained, other)
    trained.config.model.name = "builtin:mini"
    with pytest.raises(UserError, match="was trained with model.name 'builtin:mini', but --config says 'meta-llama/x'"):
        check_config(trained, other)


def accuracy_of(directory: Path) -> float:
    return float(json.loads((directory / KAVA_CONFIG).read_text())["validation"]["accuracy"])


@pytest.fixture
def old_and_new(tmp_path: Path) -> tuple[Path, Trained]:
    """A checkpoint with accuracy 0.25 on disk, and a newer model with 0.75 that is to replace it."""
    trained = make_trained(tmp_path)
    save_checkpoint(tmp_path / "saved", trained)
    trained.metadata["validation"] = {"accuracy": 0.75}
    return tmp_path / "saved", trained


def test_a_newer_checkpoint_replaces_the_older(old_and_new: tuple[Path, Trained]) -> None:
    directory, trained = old_and_new
    save_checkpoint(directory, trained)
    assert accuracy_of(directory) == 0.75
    assert sorted(path.name for path in directory.parent.iterdir()) == ["base", "saved"]


def test_any_failing_flush_leaves_a_whole_checkpoint(old_and_new: tuple[Path, Trained], monkeypatch: MonkeyPatch) -> None:
    """Whichever fsync finds the disk full: one line for the user, and a checkpoint that loads."""
    directory, trained = old_and_new
    plain = os.fsync
    files = len(list(directory.iterdir()))
    for failing in range(files + 2):
        calls = iter(range(1000))

        def fsync(descriptor: int, calls: Any = calls, failing: int = failing) -> None:
            if next(calls) == failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            plain(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(UserError, match="saved could not be written .No space left on device"):
            save_checkpoint(directory, trained)
        assert next(calls) == failing + 1
        assert accuracy_of(load_and_verify(directory)) == (0.25 if failing <= files else 0.75)
        trained.metadata["validation"] = {"accuracy": 0.75}
    assert not list(directory.parent.glob(".*.writing"))


def load_and_verify(directory: Path) -> Path:
    load_checkpoint(directory)
    assert verify(directory) is None
    return directory


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("writer", ["python", "safetensors", "tokenizers", "torch"])
def test_every_library_s_full_disk_is_one_line(tmp_path: Path, writer: str) -> None:
    writers = {
        "python": lambda: (tmp_path / "f").write_text("x" * 5_000),
        "safetensors": lambda: save_file({"x": torch.zeros(5_000)}, tmp_path / "f"),
        "tokenizers": lambda: build_mini_tokenizer(MINI, PROMPT).save_pretrained(tmp_path),
        "torch": lambda: torch.save(torch.zeros(500_000), tmp_path / "f"),
    }
    with room_for(2_000), pytest.raises(UserError, match="could not be written .*free some space") as caught, report_disk_errors(tmp_path):
        writers[writer]()
    assert "\n" not in str(caught.value)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the disk"), report_disk_errors(tmp_path):
        raise ValueError("not the disk")


@pytest.mark.parametrize("room", [0, 3_000, 14_000])
def test_a_full_disk_leaves_the_old_one(old_and_new: tuple[Path, Trained], room: int) -> None:
    """Real failing writes: 14,000 bytes cut the adapter's file off at its very end."""
    directory, trained = old_and_new
    with room_for(room), pytest.raises(UserError, match="saved could not be written .*free some space"):
        save_checkpoint(directory, trained)
    assert accuracy_of(load_and_verify(directory)) == 0.25
    assert sorted(path.name for path in directory.parent.iterdir()) == ["base", "saved"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    trained = make_trained(tmp_path)
    (tmp_path / "file").write_text("I am no directory")
    with pytest.raises(UserError, match="could not be written"):
        save_checkpoint(tmp_path / "file" / "saved", trained)
    assert (tmp_path / "file").read_text() == "I am no directory"


@pytest.mark.parametrize("moment", ["first rename", "second rename"])
def test_an_interrupted_publish_recovers(old_and_new: tuple[Path, Trained], moment: str, monkeypatch: MonkeyPatch) -> None:
    """Killed at either rename; the next load finds the older checkpoint, the next save makes the newer one."""
    directory, trained = old_and_new
    plain, calls = Path.rename, iter(range(100))

    def rename(self: Path, target: Path) -> Path:
        if next(calls) == (0 if moment == "first rename" else 1):
            raise KeyboardInterrupt
        return plain(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(directory, trained)
    assert directory.exists() is (moment == "first rename")
    assert accuracy_of(load_and_verify(directory)) == 0.25
    save_checkpoint(directory, trained)
    assert accuracy_of(load_and_verify(directory)) == 0.75
    assert sorted(path.name for path in directory.parent.iterdir()) == ["base", "saved"]


def test_a_reader_rolls_nothing_back_while_a_run_writes(old_and_new: tuple[Path, Trained]) -> None:
    """Between the two renames it put the older checkpoint back into the way of the newer one, which ended the run."""
    directory, _ = old_and_new
    directory.rename(directory.with_name(".saved.old"))
    with locked(directory.parent), pytest.raises(UserError, match="is not a checkpoint"):
        load_checkpoint(directory)
    assert not directory.exists()
    assert accuracy_of(load_and_verify(directory)) == 0.25


def test_a_checkpoint_that_is_replaced_while_it_is_loaded_is_not_mixed(old_and_new: tuple[Path, Trained], monkeypatch: MonkeyPatch) -> None:
    directory, trained = old_and_new

    def project(*arguments: Any) -> Any:
        save_checkpoint(directory, trained)
        return projection_of(*arguments)

    monkeypatch.setattr("kava.checkpoint.files.projection_of", project)
    with pytest.raises(UserError, match="saved was replaced while it was loaded; load it again"):
        load_checkpoint(directory)
    assert load_checkpoint(directory).manifest == checkpoint_hash(directory)


def test_recover_never_replaces_what_is_there(tmp_path: Path) -> None:
    for name, content in (("saved", "new"), (".saved.old", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(content)
    recover(tmp_path / "saved")
    assert (tmp_path / "saved" / "f").read_text() == "new"
    (tmp_path / "next").mkdir()
    publish(tmp_path / "next", tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
