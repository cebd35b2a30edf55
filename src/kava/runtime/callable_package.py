"""Callable packages: `kava.train` and `kava.evaluate` are also functions of the public API, as in kava.train("mini", "outputs/run")."""

from importlib import import_module
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that can be called: the call runs the function of the same name in `kava.api`, which is imported at that time."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return getattr(import_module("kava.api"), self.__name__.rpartition(".")[2])(*arguments, **options)
