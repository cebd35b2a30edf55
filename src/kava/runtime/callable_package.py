"""`kava.train` and `kava.evaluate` are packages, and as the public API has it they can be called: kava.train("mini", "outputs/run")."""

from importlib import import_module
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package whose call is the function of its name in `kava.api`, found when it is called."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return getattr(import_module("kava.api"), self.__name__.rpartition(".")[2])(*arguments, **options)
