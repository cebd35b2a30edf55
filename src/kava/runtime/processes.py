"""Distributed runs (torchrun, accelerate launch, srun): rank, barrier, and gathering of results.

All functions also work in a single process, where they do nothing. The launcher's environment variables say how many processes
there are; accelerate opens the process group.
"""

import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from kava.errors import UserError

Item = TypeVar("Item")
# Set by launchers; a child process without them is an independent run.
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_LAUNCHER = (*_NUMBERS, "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
# Set by a runner for its children: the runner's process id.
PARENT = "KAVA_PARENT"
_PR_SET_PDEATHSIG = 1
_ACCELERATE_FSDP = "ACCELERATE_USE_FSDP"


def drop_incomplete_launch() -> None:
    """If the launcher's variables are incomplete, drop them with a message and run as one process."""
    found = [name for name in _NUMBERS if name in os.environ]
    words = [os.environ.get(name, "").strip() for name in _NUMBERS]
    if not found or (all(word.isdigit() for word in words) and int(words[0]) < int(words[1])):
        return
    for name in _LAUNCHER:
        os.environ.pop(name, None)
    print(
        f"kava: incomplete launch ({', '.join(found)} without a whole number in each of {', '.join(_NUMBERS)}): running as one process;"
        " torchrun or accelerate launch start several",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def rank() -> int:
    """Return this process's rank; 0 is the main process."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes in the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return this process's rank on its machine, which is the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Return whether this is the process that writes files and prints."""
    return rank() == 0


def launched_to_split() -> bool:
    """Return whether accelerate was configured to shard the model (FSDP). kava shards it itself (`system.fsdp`) and drops the variable.

    Raises:
        UserError: accelerate was also configured to offload weights to the CPU, which is not supported.
    """
    if os.environ.pop(_ACCELERATE_FSDP, "false").lower() != "true":
        return False
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise UserError("weights are not offloaded to the CPU: set fsdp_offload_params to false in accelerate's configuration file")
    return True


def join(on_cpu: bool, split: bool = False) -> None:
    """Open the process group of a launched run.

    Raises:
        UserError: the model is to be sharded (`split`), and there is only one process.
    """
    drop_incomplete_launch()
    if split and world_size() == 1:
        cure = "start them with torchrun or accelerate launch, or set it to false"
        raise UserError(f"system.fsdp splits a model over several processes: {cure}")
    # With this variable transformers would load weights on the first process only.
    os.environ.pop(_ACCELERATE_FSDP, None)
    if world_size() > 1:
        from accelerate import PartialState

        PartialState(cpu=on_cpu)


def leave() -> None:
    """Close the process group at the end of a command, so that no process waits for one that has exited."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def wait() -> None:
    """Wait until all processes have arrived here."""
    if world_size() > 1:
        from torch import distributed

        distributed.barrier()


def gather(share: Sequence[Item]) -> list[Item]:
    """Return the items of all N processes in the order of `deal`: process r holds items r, r + N, r + 2 N, ..."""
    if world_size() == 1:
        return list(share)
    from torch import distributed

    shares: list[Any] = [None] * world_size()
    distributed.all_gather_object(shares, list(share))
    longest = max(map(len, shares))
    return [held[index] for index in range(longest) for held in shares if index < len(held)]


def deal(items: Sequence[Item]) -> Sequence[Item]:
    """Return this process's share: every N-th item; no item is in two shares."""
    return items[rank() :: world_size()]


@contextmanager
def alone() -> Iterator[None]:
    """Make child processes that are started inside the block independent runs."""
    held = {name: os.environ.pop(name) for name in _LAUNCHER if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


def signals_to_handle(numbers: Iterable[int]) -> list[signal.Signals]:
    """Return the signals to handle: all, except a SIGHUP that `nohup` has disabled."""
    nohup = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.Signals(number) for number in numbers if not (nohup and number == signal.SIGHUP)]


def end_with_parent() -> None:
    """If a runner started this process, get SIGTERM (save and exit) when the runner dies for any reason. Linux only."""
    parent = os.environ.pop(PARENT, "")
    if not parent.isdigit() or not sys.platform.startswith("linux"):
        return
    _send_at_parents_death(signal.SIGTERM)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)


def die_with_parent() -> None:
    """Have this process killed when its parent dies for any reason: a helper that noticed it would end in a traceback. Linux only."""
    if sys.platform.startswith("linux"):
        _send_at_parents_death(signal.SIGKILL)


def _send_at_parents_death(number: signal.Signals) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
