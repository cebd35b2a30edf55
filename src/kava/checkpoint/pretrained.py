"""Deprecated name `KavaForCausalLM` of `kava.Model`; use `kava.load`."""

import warnings
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "KavaForCausalLM":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    warnings.warn("KavaForCausalLM is kava.Model now: kava.load(NAME), or kava.Model.from_pretrained(NAME)", FutureWarning, stacklevel=2)
    return import_module("kava.api").Model
