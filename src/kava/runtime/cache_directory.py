"""Where this project keeps what it made once: converted and pretrained base models, tokenized data."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """$KAVA_CACHE, or ~/.cache/kava."""
    return Path(os.environ.get("KAVA_CACHE") or Path.home() / ".cache" / "kava")
