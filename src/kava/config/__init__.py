"""Configuration of a run: schema, YAML files, command-line overrides and error messages."""

from kava.config.load import CONFIG_DIR, build_config, config_path, load_config, recorded_config, renewed_fingerprint
from kava.config.schema import (
    Config,
    DatasetConfig,
    LossConfig,
    MethodName,
    MiniDataConfig,
    MiniModelConfig,
    RkvConfig,
)

__all__ = [
    "CONFIG_DIR",
    "Config",
    "DatasetConfig",
    "LossConfig",
    "MethodName",
    "MiniDataConfig",
    "MiniModelConfig",
    "RkvConfig",
    "build_config",
    "config_path",
    "load_config",
    "recorded_config",
    "renewed_fingerprint",
]
