"""The mini experiment's base in the cache: what its name holds, and that it is whole."""

import json
from pathlib import Path

import pytest
import torch

from kava.config import Config, load_config
from kava.errors import UserError
from kava.runtime.atomic import verify
from kava.runtime.cache_directory import cache_dir
from kava.train.pretrain import ensure_mini_base, mini_base_directory

# Nothing is learned: these tests are about files.
UNTAUGHT = {"model.name": "builtin:mini", "model.mini.pretrain_steps": 0, "model.mini.hidden_size": 32, "dataset.mini.num_train": 20}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAVA_CACHE", str(tmp_path))
    return ensure_mini_base(load_config(None, UNTAUGHT), quiet=True)


def config(**overrides: object) -> Config:
    return load_config(None, UNTAUGHT | {key.replace("__", "."): value for key, value in overrides.items()})


def test_a_flipped_bit_is_found_and_the_base_made_again(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = base / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
    assert ensure_mini_base(config(), quiet=True) == base
    assert f"mini base {base} is damaged (model.safetensors does not match its checksum); making it again" in capsys.readouterr().err
    assert weights.read_bytes() == whole
    assert verify(base) is None
    assert ensure_mini_base(config(), quiet=True) == base
    assert capsys.readouterr().err == ""


def test_its_name_holds_what_shapes_it(base: Path) -> None:
    own = {"system__mixed_precision": "no", "model__attn_implementation": "eager", "training__seed": 7, "model__mini__pretrain_steps": 1,
           "dataset__mini__num_train": 21, "dataset__cot_type": "natural_language"}  # fmt: skip
    names = {mini_base_directory(config(**{key: value})).name for key, value in own.items()}
    assert len(names | {base.name}) == len(own) + 1
    # The run's own settings are not the base's.
    for key, value in {"training__learning_rate": 1.0, "method": "codi", "training__lr_scheduler": "constant"}.items():
        assert mini_base_directory(config(**{key: value})) == base, key


def test_what_no_name_can_hold_is_said_beside_it(base: Path) -> None:
    about = json.loads((base / "about.json").read_text())
    assert about["threads"] == torch.get_num_threads()
    assert about["torch"] == torch.__version__


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KAVA_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="mini base .* cannot be put into the cache .*set KAVA_CACHE to a directory that can be written to"):
        ensure_mini_base(config(), quiet=True)


def test_without_a_home_directory_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAVA_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home directory.")))
    with pytest.raises(UserError, match="no home directory .* set KAVA_CACHE"):
        cache_dir()


def test_a_disk_that_fills_up_while_the_base_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("KAVA_CACHE", str(tmp_path))
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    with pytest.raises(UserError, match=r"mini base .* could not be written \(No space left on device\): free some .* set KAVA_CACHE"):
        ensure_mini_base(config(), quiet=True)
    assert not list(mini_base_directory(config()).parent.glob("[!.]*"))
