"""Every setting of a run: schema, YAML files, overrides, and what is said when something is wrong."""

from kava.config.load import CONFIG_DIR, build_config, config_path, load_config, recorded_config
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
]
