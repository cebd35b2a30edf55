"""KaVa: language models that reason in latent tokens, taught by a compressed KV cache (arXiv 2510.02312).

import kava

model = kava.load("outputs/run/best_checkpoint")      # or a hub name
model.answer("...")                                   # a list of questions returns a list
model.stream("..."), model.think("..."), model.generate("...")
kava.compress(kava.Trace.from_cache(cache, attentions), "rkv", slots=24)
kava.train("mini", "outputs/run")
kava.evaluate(model, "gsm8k")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kava.api import METHODS, SCORERS, Config, Generation, Model, Thoughts, Trace, UserError, compress, evaluate, load, train

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "SCORERS",
    "Config",
    "Generation",
    "Model",
    "Thoughts",
    "Trace",
    "UserError",
    "__version__",
    "compress",
    "evaluate",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load public names from `kava.api` on first use, so that `import kava` alone imports nothing else."""
    if name in ("train", "evaluate"):
        # These two are also packages, which can be called: see kava.runtime.callable_package.
        return import_module(f"kava.{name}")
    if name in __all__:
        return getattr(import_module("kava.api"), name)
    raise AttributeError(f"module 'kava' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
