"""Choice of the device, for every command and the API.

choose_device()           a GPU if there is one (each of several processes its own), else the CPU
choose_device("cuda:1")   the requested device, or a UserError if there is none
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from kava.errors import UserError
from kava.runtime import processes

# Variables with GPU indices, where 0 is a GPU, and variables with GPU counts.
_SLURM_NUMBERS, _SLURM_COUNTS = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS"), ("SLURM_GPUS_ON_NODE", "SLURM_GPUS")


_as_on_gpu: ContextVar[bool] = ContextVar("as_on_gpu", default=False)


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Take a GPU's way on a CPU too, for code that counts what a GPU would run and store: SDPA, and logits in slices."""
    token = _as_on_gpu.set(True)
    try:
        yield
    finally:
        _as_on_gpu.reset(token)


def runs_as_on_gpu() -> bool:
    """Whether the code runs inside `as_on_gpu`."""
    return _as_on_gpu.get()


def choose_device(asked: str | None = None, setting: str = "device") -> str:
    """Return torch's name for the device to use.

    Args:
        asked: "cpu", "cuda" (this process's own GPU) or "cuda:N"; "auto" or None: a GPU if there is one.
        setting: name of the setting for messages, such as system.device.

    Raises:
        UserError: there is no such device; or none was requested and Slurm gave this job a GPU that torch does not see.
    """
    import torch

    number = re.fullmatch(r"cuda(?::(\d+))?", asked or "")
    if asked not in (None, "auto", "cpu") and number is None:
        one = "" if setting.startswith("system.") else " or cuda:N"
        raise UserError(f"{setting} '{asked}' is unknown; set it to auto, cpu, cuda{one}")
    if asked == "cpu":
        return "cpu"
    if number is None and not torch.cuda.is_available():
        _refuse_an_idle_gpu(setting)
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError(f"{setting} is {asked}, but torch sees no GPU here; set it to auto or cpu")
    chosen = int(number[1]) if number and number[1] else processes.local_rank()
    if chosen >= torch.cuda.device_count():
        raise UserError(f"{setting} is cuda:{chosen}, but torch sees {torch.cuda.device_count()} GPUs here, counted from 0; set it to auto")
    return f"cuda:{chosen}"


def check_precision(device: str, precision: str) -> None:
    """Check that a device supports `system.mixed_precision`.

    Raises:
        UserError: a GPU without bfloat16 (V100, T4), where emulation would be many times slower.
    """
    import torch

    if precision == "bf16" and device != "cpu" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise UserError(f"{name} has no bfloat16: set system.mixed_precision to fp16 (--system.mixed_precision fp16)")


def describe_device(device: str) -> str:
    """Return a description of a device, and of GPUs that stay unused."""
    import torch

    if device == "cpu":
        return f"the CPU, {torch.get_num_threads()} threads"
    words, gpus = f"{device} ({torch.cuda.get_device_name(device)})", torch.cuda.device_count()
    if processes.world_size() > 1:
        return f"{words} in each of {processes.world_size()} processes"
    return f"{words}, one of {gpus} GPUs (torchrun --nproc-per-node {gpus} train.py ... uses all)" if gpus > 1 else words


def _refuse_an_idle_gpu(setting: str) -> None:
    """Refuse to run on the CPU if Slurm gave this job a GPU: a job that waited for one must not silently do without it."""
    import torch

    given = [name for name in _SLURM_NUMBERS if os.environ.get(name)]
    given += [name for name in _SLURM_COUNTS if os.environ.get(name, "0") != "0"]
    # An empty CUDA_VISIBLE_DEVICES or -1: the user has hidden the GPUs on purpose.
    if given and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        what = f"{given[0]}={os.environ[given[0]]}"
        raise UserError(
            f"Slurm gave this job a GPU ({what}), but torch {torch.__version__} sees none: it is built for the CPU, or for "
            f"another CUDA than the driver's (nvidia-smi); fix that, or set {setting} to cpu"
        )
