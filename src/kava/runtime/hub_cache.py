"""Support for a shared model library as on the reproduction guide's cluster: `models--*/` directly under HF_HOME.

Hugging Face's libraries look in HF_HOME/hub only, and no longer read TRANSFORMERS_CACHE. The guide exports both variables.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

HUB_CACHE = "HF_HUB_CACHE"
# If the user sets one of these, it is left alone.
CHOSEN = (HUB_CACHE, "HUGGINGFACE_HUB_CACHE")
LIBRARIES = ("HF_HOME", "TRANSFORMERS_CACHE")


def use_shared_library(environment: MutableMapping[str, str] = os.environ) -> None:
    """Point HF_HUB_CACHE at a directory that contains models directly. Call before importing huggingface_hub, which reads it once.

    Nothing changes if HF_HUB_CACHE is set. A directory that also has models in its `hub/` is skipped.
    """
    if any(environment.get(name) for name in CHOSEN):
        return
    for name in LIBRARIES:
        directory = Path(environment.get(name) or os.devnull).expanduser()
        if _holds_models(directory) and not _holds_models(directory / "hub"):
            environment[HUB_CACHE] = str(directory)
            return


def _holds_models(directory: Path) -> bool:
    try:
        return any(directory.glob("models--*/snapshots"))
    except OSError:
        return False
