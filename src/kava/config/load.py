"""Load a valid configuration from a file, a name or a dictionary.

    config = load_config("configs/llama1b_aug.yaml", overrides={"training.batch_size": 64})

Unknown keys, wrong types, values out of range and contradictions raise `UserError` with the file, the key and the fix.
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kava.config.files import read_sections, refuse_unused_latents
from kava.config.fingerprint import FORMERLY_LEFT_OUT, former_fingerprint, with_later_settings
from kava.config.messages import explain
from kava.config.overrides import apply_overrides, dotted
from kava.config.schema import Config
from kava.errors import UserError, nearest
from kava.runtime import shipped

CONFIG_DIR = "configs"


def config_path(name: str) -> Path:
    """Return the file for a path or a bare name in `configs/`: from the working directory, else from the package.

    Raises:
        UserError: there is no such file.
    """
    if path := shipped.find(CONFIG_DIR, name):
        return path
    known = [path.stem for path in shipped.listed(CONFIG_DIR)]
    raise UserError(f"configuration '{name}' is neither a file nor a name in {CONFIG_DIR}/{nearest(Path(name).stem, known)}")


def load_config(path: str | Path | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Read a YAML file (None: all defaults) and the files it extends, apply dotted overrides, and validate.

    Raises:
        UserError: the configuration is not valid; the message names the file, the key and the fix.
    """
    overrides = dotted(overrides or {})
    config = build_config({} if path is None else read_sections(path), "the defaults" if path is None else str(path), overrides)
    refuse_unused_latents("the overrides", config.method, overrides.get("latent.num_tokens"))
    return config


def recorded_config(content: dict[Any, Any], source: str, overrides: dict[str, Any] | None = None) -> Config:
    """Build the configuration that a run recorded; settings added since then get their neutral values."""
    return build_config(with_later_settings(content), source, overrides)


def renewed_fingerprint(recorded: str, content: dict[Any, Any]) -> str:
    """Return the fingerprint that a run recorded as this version computes it; earlier versions counted what a resume may change.

    Args:
        recorded: the fingerprint.
        content: the configuration recorded with it; if it is another one or cannot be read, the fingerprint is returned as recorded.
    """
    try:
        config = recorded_config(content, "a recorded configuration")
    except UserError:
        return recorded
    former = [former_fingerprint(config.to_dict(), count) for count in FORMERLY_LEFT_OUT]
    return config.fingerprint() if recorded in former else recorded


def build_config(content: dict[Any, Any], source: str, overrides: dict[str, Any] | None = None) -> Config:
    """Validate a dictionary of sections; `source` is its name in error messages, which say what overrides are at fault."""
    if overrides:
        content = apply_overrides(content, overrides, Config().to_dict())
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        said: dict[str, dict[str, None]] = {}
        given = dotted(overrides or {})
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"]))
            own = any(key == name or key.startswith(f"{name}.") for name in given)
            said.setdefault(f"overrides of {source}" if own else source, {})[explain(problem, Config)] = None
        raise UserError("; ".join(f"{place}: {'; '.join(problems)}" for place, problems in said.items())) from None
