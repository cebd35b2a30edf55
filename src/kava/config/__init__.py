"""Every setting of a run: schema, YAML files, overrides, and what is said when something is wrong."""

from kava.config.schema import (
    CONFIG_DIR,
    Config,
    DatasetConfig,
    LossConfig,
    MethodName,
    MiniDataConfig,
    MiniModelConfig,
    RkvConfig,
    build_config,
    config_path,
    load_config,
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
]
