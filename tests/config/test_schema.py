"""The configuration: what it takes, what it refuses and in which words."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kava.config import Config, build_config, config_path, load_config, recorded_config
from kava.config.files import WITHOUT_LATENTS
from kava.config.fingerprint import LATER_SETTINGS
from kava.errors import UserError


def message(content: dict[str, Any], overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        build_config(content, "here.yaml", overrides)
    return str(caught.value)


def test_defaults_are_the_papers() -> None:
    config = Config()
    assert (config.method, config.latent.num_tokens, config.latent.num_iterations) == ("kava", 24, 3)
    assert (config.loss.alpha1_codi, config.loss.alpha2_kv, config.rkv.lambda_) == (10.0, 1.0, 0.1)
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (128, 32, 0.1)
    assert (config.training.learning_rate, config.training.batch_size, config.training.max_grad_norm) == (8e-4, 128, 2.0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"loss": {"alpha2": 2}}, "unknown key 'loss.alpha2'; did you mean 'alpha2_kv'?"),
        ({"trainning": {}}, "unknown key 'trainning'; did you mean 'training'?"),
        ({"batch_size": 4}, "unknown key 'batch_size'; did you mean 'training.batch_size'?"),
        ({"loss": {"learning_rate": 1e-3}}, "unknown key 'loss.learning_rate'; did you mean 'training.learning_rate'?"),
        ({"rkv": {"xyzzy": 1}}, "unknown key 'rkv.xyzzy'; valid names: eviction, group_reduction, importance, lambda, share"),
        ({"dataset": {"mini": {"modulo": 7}}}, "unknown key 'dataset.mini.modulo'; did you mean 'modulus'?"),
        ({"]": 1}, "unknown key ']'; valid names: dataset, evaluation, latent, lora, loss, method, model, rkv, system, training"),
        ({"evaluation": {"dataset": {}}}, "unknown key 'evaluation.dataset'; did you mean 'datasets'?"),
    ],
)
def test_unknown_keys_come_with_the_right_name(content: dict[str, Any], expected: str) -> None:
    assert message(content) == f"here.yaml: {expected}"


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"training": {"batch_size": "many"}}, "training.batch_size"),
        ({"training": {"batch_size": 0}}, "training.batch_size"),
        ({"training": {"batch_size": 1.5}}, "training.batch_size"),
        ({"training": {"batch_size": True}}, "training.batch_size"),
        ({"training": {"eval_steps": False}}, "training.eval_steps"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate"),
        ({"training": {"learning_rate": float("inf")}}, "training.learning_rate"),
        ({"training": {"seed": -1}}, "training.seed"),
        ({"training": {"seed": 2**32}}, "training.seed"),
        ({"training": {"seed": 10**5000}}, "training.seed"),
        ({"training": {"batch_size": 2**63}}, "training.batch_size"),
        ({"training": {"epochs": 10**400}}, "training.epochs"),
        ({"training": {"removal_smoothing": True}}, "training.removal_smoothing"),
        ({"training": 5}, "training"),
        ({"model": {"name": 7}}, "model.name"),
        ({"model": {"name": ""}}, "model.name"),
        ({"rkv": {"lambda": 1.01}}, "rkv.lambda"),
        ({"rkv": {"eviction": "r-kv"}}, "rkv.eviction"),
        ({"loss": {"kv_loss_type": "huber"}}, "loss.kv_loss_type"),
        ({"lora": {"target_modules": 5}}, "lora.target_modules"),
        ({"lora": {"dropout": 1.0}}, "lora.dropout"),
        ({"evaluation": {"datasets": {"gsm8k": 3}}}, "evaluation.datasets.gsm8k"),
        ({"method": "kva"}, "method"),
    ],
)
def test_wrong_values_name_their_key_and_what_was_given(content: dict[str, Any], key: str) -> None:
    text = message(content)
    assert text.startswith((f"here.yaml: {key}: Input should be ", f"here.yaml: {key}: String should have "))
    assert "(got " in text
    assert len(text) < 400


def test_union_branches_do_not_show_in_the_key() -> None:
    assert "list[str]" not in message({"lora": {"target_modules": 5}})


def test_every_problem_is_reported_at_once() -> None:
    text = message({"training": {"batch_size": 0}, "rkv": {"lambda": -1}, "typo": 1})
    assert all(part in text for part in ("training.batch_size", "rkv.lambda", "unknown key 'typo'"))
    assert text.count(";") >= 2


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"lora": {"r": 0}}, "lora.enabled to false"),
        ({"method": "kava", "latent": {"num_tokens": 0}}, "latent.num_tokens is 0, but method kava"),
        ({"method": "codi", "latent": {"num_tokens": 0}}, "latent.num_tokens is 0, but method codi"),
        ({"dataset": {"mini": {"min_steps": 4, "max_steps": 3}}}, "dataset.mini.min_steps is larger than dataset.mini.max_steps"),
        ({"method": "coconut", "latent": {"num_tokens": 0}}, "latent.num_tokens is 0, but method coconut"),
        ({"model": {"mini": {"hidden_size": 36}}}, "model.mini: hidden_size 36 is no multiple of 2 x num_heads 4"),
        ({"model": {"mini": {"num_kv_heads": 3}}}, "model.mini: num_heads 4 is no multiple of num_kv_heads 3"),
        ({"model": {"dtype": "bfloat16"}, "system": {"mixed_precision": "no"}}, "model.dtype bfloat16 needs system.mixed_precision"),
        ({"evaluation": {"datasets": {"x; rm -rf ~": "f.json"}}}, "'x; rm -rf ~' names files: use letters, digits"),
        ({"evaluation": {"datasets": {"-x": "f.json"}}}, "'-x' names files"),
        ({"evaluation": {"datasets": {"../x": "f.json"}}}, "'../x' names files"),
    ],
)
def test_contradictions_are_refused(content: dict[str, Any], part: str) -> None:
    assert part in message(content)


@pytest.mark.parametrize("method", WITHOUT_LATENTS)
def test_latents_beside_a_method_without_any_are_refused_where_one_hand_wrote_both(tmp_path: Path, method: str) -> None:
    own, base, derived = (tmp_path / name for name in ("own.yaml", "base.yaml", "derived.yaml"))
    own.write_text(f"method: {method}\nlatent: {{num_tokens: 6}}\n")
    with pytest.raises(UserError, match=f"own.yaml: latent.num_tokens is 6, but method {method} has no latents"):
        load_config(own)
    base.write_text("latent: {num_tokens: 6}\n")
    derived.write_text(f"extends: base.yaml\nmethod: {method}\n")
    with pytest.raises(UserError, match="the command line: latent.num_tokens is 4"):
        load_config(base, {"method": method, "latent.num_tokens": 4})
    configs = [load_config(derived), load_config(base, {"method": method}), load_config(None, {"method": method})]
    assert [config.latent.num_tokens for config in configs] == [0, 0, 0]
    # The same run, whatever it was made from; and what is written is read again.
    assert configs[0].fingerprint() == configs[1].fingerprint()
    own.write_text(yaml.safe_dump(configs[0].to_dict()))
    assert load_config(own) == configs[0]


def test_values_at_the_edges_are_taken() -> None:
    content = {
        "method": "no_cot",
        "latent": {"num_tokens": 0},
        "lora": {"enabled": False, "r": 0},
        "rkv": {"lambda": 1},
        "training": {"seed": 0},
    }
    config = build_config(content, "here.yaml")
    assert (config.latent.num_tokens, config.lora.r, config.rkv.lambda_, config.training.seed) == (0, 0, 1.0, 0)


def test_yaml_spellings_that_python_reads_differently(tmp_path: Path) -> None:
    """YAML 1.1 reads `no` as false and 8e-4 as text; a single module name is a list of one."""
    path = tmp_path / "c.yaml"
    path.write_text("system: {mixed_precision: no}\ntraining: {learning_rate: 8e-4}\nlora: {target_modules: q_proj}\n")
    config = load_config(path)
    assert (config.system.mixed_precision, config.training.learning_rate, config.lora.target_modules) == ("no", 8e-4, ["q_proj"])


def test_changing_one_config_leaves_the_defaults_alone() -> None:
    config = Config()
    config.training.seed = 7
    config.evaluation.datasets["own"] = "/data"
    assert Config().training.seed == 42
    assert "own" not in Config().evaluation.datasets


def test_what_an_earlier_version_wrote_down_stays_what_it_was() -> None:
    """Settings that came later are not the published ones then."""
    config = build_config({"method": "icot"}, "a test", {"training.removal_smoothing": None, "training.reset_optimizer": False})
    config.training.remove_all_beyond = None
    older = config.to_dict()
    for section, key, _ in LATER_SETTINGS:
        del older[section][key]
    assert recorded_config(older, "a test") == config
    assert recorded_config(older, "a test").fingerprint() == config.fingerprint()


def test_round_trip_through_yaml(tmp_path: Path) -> None:
    config = build_config({"method": "pccot", "rkv": {"lambda": 0.25}, "lora": {"target_modules": ["q_proj", "o_proj"]}}, "here.yaml")
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    assert load_config(path) == config
    assert config.to_dict()["rkv"]["lambda"] == 0.25
    assert "lambda_" not in config.to_dict()["rkv"]


def _leaves(content: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in content.items():
        rows += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return rows


def _other(key: str, value: Any) -> Any:
    choices = {"method": "codi", "loss.kv_loss_type": "mse", "loss.codi_loss_type": "l1", "loss.kv_rope": "pre", "loss.kv_parts": "keys"}
    choices |= {"rkv.eviction": "crop", "rkv.group_reduction": "mean", "model.dtype": "bfloat16", "model.attn_implementation": "eager"}
    choices |= {"loss.kv_iterations": "all", "rkv.importance": "trace", "rkv.share": "layer"}
    choices |= {"dataset.cot_type": "natural_language", "dataset.on_bad_row": "skip", "training.lr_scheduler": "linear"}
    choices |= {"system.mixed_precision": "fp16", "system.device": "cpu", "lora.target_modules": ["q_proj"]}
    choices |= {"dataset.answer_type": "choice", "model.revision": "v1", "dataset.revision": "v1"}
    choices |= {"model.quantization": "4bit", "model.mini.hidden_size": 256, "model.mini.num_heads": 8, "model.mini.num_kv_heads": 4}
    if key in choices:
        return choices[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value / 2 if isinstance(value, float) and value else value + 1
    return 3 if value is None else f"{value}x"


@pytest.mark.parametrize(("key", "value"), list(_leaves(Config().to_dict())))
def test_fingerprint_ignores_the_seed_and_nothing_else(key: str, value: Any) -> None:
    changed = build_config({}, "here.yaml", {key: _other(key, value)})
    assert dict(_leaves(changed.to_dict()))[key] != value
    assert (changed.fingerprint() == Config().fingerprint()) == (key == "training.seed")


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


NAMES = [key for key, _ in _leaves(Config().to_dict())]
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
