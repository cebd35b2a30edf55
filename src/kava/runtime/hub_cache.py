"""A shared model library as on the reproduction guide's cluster: `models--*/` right under the directory that HF_HOME names.

Hugging Face's libraries look in HF_HOME/hub only, and read no TRANSFORMERS_CACHE any more. Both are what the guide exports.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

HUB_CACHE = "HF_HUB_CACHE"
# Set by hand, they are where the user wants it.
CHOSEN = (HUB_CACHE, "HUGGINGFACE_HUB_CACHE")
LIBRARIES = ("HF_HOME", "TRANSFORMERS_CACHE")


def use_shared_library(environment: MutableMapping[str, str] = os.environ) -> None:
    """Point HF_HUB_CACHE at a directory that holds models itself; to be called before huggingface_hub is imported, which reads it once.

    Left alone: a HF_HUB_CACHE that is set, and a HF_HOME with models in its `hub/`.
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
