"""Whether Triton's kernels can run here."""

import os
from importlib.util import find_spec

import torch


def runs_triton() -> bool:
    """On a GPU, or anywhere in Triton's interpreter."""
    return find_spec("triton") is not None and (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1")
