"""Where a program computes: chosen here, for every command and for the API.

choose_device()           a GPU where there is one (of several processes each its own), else the CPU
choose_device("cuda:1")   as asked, or one sentence where there is none
"""

import re

from kava.errors import UserError
from kava.runtime import processes


def choose_device(asked: str | None = None, setting: str = "device") -> str:
    """What torch calls the device.

    Args:
        asked: "cpu", "cuda" (this process's own GPU) or "cuda:N"; "auto" or None: a GPU where there is one.
        setting: what a message calls it, such as system.device.

    Raises:
        UserError: there is no such device.
    """
    import torch

    number = re.fullmatch(r"cuda(?::(\d+))?", asked or "")
    if asked not in (None, "auto", "cpu") and number is None:
        raise UserError(f"{setting} '{asked}' is unknown; set it to auto, cpu, cuda or cuda:N")
    if asked == "cpu" or (number is None and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError(f"{setting} is {asked}, but torch sees no GPU here; set it to auto or cpu")
    chosen = int(number[1]) if number and number[1] else processes.local_rank()
    if chosen >= torch.cuda.device_count():
        raise UserError(f"{setting} is cuda:{chosen}, but torch sees {torch.cuda.device_count()} GPUs here, counted from 0; set it to auto")
    return f"cuda:{chosen}"
