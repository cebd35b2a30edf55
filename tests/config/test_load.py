"""Configurations out of files and dictionaries: what is read, and what is refused with the name of the file."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kava.config import Config, build_config, config_path, load_config
from kava.config.differences import flatten
from kava.config.files import WITHOUT_LATENTS
from kava.errors import UserError


def test_yaml_spellings_that_python_reads_differently(tmp_path: Path) -> None:
    """YAML 1.1 reads `no` as false and 8e-4 as text; a single module name is a list of one."""
    path = tmp_path / "c.yaml"
    path.write_text("system: {mixed_precision: no}\ntraining: {learning_rate: 8e-4}\nlora: {target_modules: q_proj}\n")
    config = load_config(path)
    assert (config.system.mixed_precision, config.training.learning_rate, config.lora.target_modules) == ("no", 8e-4, ["q_proj"])


@pytest.mark.parametrize("method", WITHOUT_LATENTS)
def test_latents_beside_a_method_without_any_are_refused_where_one_hand_wrote_both(tmp_path: Path, method: str) -> None:
    own, base, derived = (tmp_path / name for name in ("own.yaml", "base.yaml", "derived.yaml"))
    own.write_text(f"method: {method}\nlatent: {{num_tokens: 6}}\n")
    with pytest.raises(UserError, match=f"own.yaml: latent.num_tokens is 6, but method {method} has no latents"):
        load_config(own)
    base.write_text("latent: {num_tokens: 6}\n")
    derived.write_text(f"extends: base.yaml\nmethod: {method}\n")
    with pytest.raises(UserError, match="the overrides: latent.num_tokens is 4"):
        load_config(base, {"method": method, "latent.num_tokens": 4})
    with pytest.raises(UserError, match="the overrides: latent.num_tokens is 4"):
        load_config(base, {"method": method, "latent": {"num_tokens": 4}})
    configs = [load_config(derived), load_config(base, {"method": method}), load_config(None, {"method": method})]
    assert [config.latent.num_tokens for config in configs] == [0, 0, 0]
    # The same run, whatever it was made from; and what is written is read again.
    assert configs[0].fingerprint() == configs[1].fingerprint()
    own.write_text(yaml.safe_dump(configs[0].to_dict()))
    assert load_config(own) == configs[0]


def test_round_trip_through_yaml(tmp_path: Path) -> None:
    config = build_config({"method": "pccot", "rkv": {"lambda": 0.25}, "lora": {"target_modules": ["q_proj", "o_proj"]}}, "here.yaml")
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    assert load_config(path) == config
    assert config.to_dict()["rkv"]["lambda"] == 0.25
    assert "lambda_" not in config.to_dict()["rkv"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("training: [1, 2", "is not valid YAML"),
        ("training:\n\t- x", "is not valid YAML"),
        ("{" * 5000, "is not valid YAML"),
        ("a: " + "1" * 5000, "is not valid YAML"),
        ("a: 2024-99-99", "is not valid YAML"),
        ("- a\n- b", "must hold sections such as 'model:', not a list"),
        ("just words", "must hold sections such as 'model:', not a str"),
        ("training: &t {seed: *t}", "training.seed"),
        ("1: 2", "Keys should be strings"),
    ],
)
def test_yaml_errors_name_the_file(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert part in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"a: !!python/object/apply:os.mkdir ['{tmp_path}/made']")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_config(path)
    assert not (tmp_path / "made").exists()


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"model: {name: \xe9}")
    with pytest.raises(UserError, match="absent.yaml does not exist"):
        load_config(tmp_path / "absent.yaml")
    for path in (tmp_path, tmp_path / "latin.yaml", "nul\0byte"):
        with pytest.raises(UserError, match="cannot be read"):
            load_config(path)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert load_config(path) == load_config(None) == Config()


def test_config_path_takes_paths_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path("configs/llama1b_aug.yaml").write_text("")
    assert config_path("llama1b_aug") == config_path("configs/llama1b_aug.yaml") == Path("configs/llama1b_aug.yaml")
    with pytest.raises(UserError, match="did you mean 'llama1b_aug'"):
        config_path("llama1b_agu")
    Path("configs/llama1b_aug_nl.yaml").write_text("")
    for typed in ("llama1b_agu", "configs/llama1b_agu.yaml", "configs/llama1b_agu"):
        with pytest.raises(UserError, match="did you mean 'llama1b_aug'"):
            config_path(typed)
    for odd in ("configs", "x" * 300, "nul\0byte", ""):
        with pytest.raises(UserError, match="neither a file nor a name"):
            config_path(odd)


NAMES = list(flatten(Config().to_dict()))
SECTIONS = [*Config().to_dict(), "mini", "datasets"]
FIELDS = sorted({key.rpartition(".")[2] for key in NAMES})
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([10**400, -1, "auto", "kava", "no"])
)
KEYS = st.sampled_from([*SECTIONS, *FIELDS]) | st.text(st.characters(), max_size=5) | st.integers(-2, 2) | st.none()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12)


@settings(max_examples=400, deadline=None)
@given(
    content=st.dictionaries(KEYS, VALUES, max_size=4),
    overrides=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), VALUES, max_size=3),
)
def test_anything_gives_a_config_or_one_readable_line(content: dict[str, Any], overrides: dict[str, Any]) -> None:
    try:
        config = build_config(content, "fuzz", overrides)
    except UserError as error:
        assert str(error)
    else:
        assert build_config(config.to_dict(), "again") == config
        assert len(config.fingerprint()) == 16


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60) | st.text("{}[]:,-&*!|>#'\"% \n\tab1", max_size=40))
def test_any_text_as_a_file_gives_a_config_or_one_readable_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "c.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        load_config(path)
    except UserError as error:
        assert "\n" not in str(error)
