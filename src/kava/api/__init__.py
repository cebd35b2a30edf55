"""The public API, loaded lazily by `import kava`: load a model, ask it, inspect its latents, compress, train, evaluate.

model = kava.load("outputs/run/best_checkpoint")
model.answer("...").answer
"""

from kava.api.functions import compress, evaluate, load, train
from kava.api.model import Model
from kava.config import Config
from kava.errors import UserError
from kava.eviction import SCORERS, Trace
from kava.explain.thoughts import Thoughts
from kava.generate import Generation
from kava.methods import METHODS

__all__ = [
    "METHODS",
    "SCORERS",
    "Config",
    "Generation",
    "Model",
    "Thoughts",
    "Trace",
    "UserError",
    "compress",
    "evaluate",
    "load",
    "train",
]
