"""One run in several processes (torchrun, accelerate launch, srun): rank, barrier, and gathering of shares.

Everything here is right in a single process too, where it does nothing. The launcher's environment is what says how many
there are; the process group itself is opened by accelerate.
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


def refuse_half_a_launch() -> None:
    """Drop variables left over from a launch, with a line that says so, and run as one process."""
    found = [name for name in _NUMBERS if name in os.environ]
    words = [os.environ.get(name, "").strip() for name in _NUMBERS]
    if not found or (all(word.isdigit() for word in words) and int(words[0]) < int(words[1])):
        return
    for name in _LAUNCHER:
        os.environ.pop(name, None)
    print(
        f"kava: half a launch ({', '.join(found)} without a whole number in each of {', '.join(_NUMBERS)}) is none: one process;"
        " torchrun or accelerate launch start several",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def rank() -> int:
    """This process's rank; 0 is the main one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes in the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's rank on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def launched_to_split() -> bool:
    """Whether accelerate was configured to shard the model (FSDP). Sharding is ours (`system.fsdp`), so the variable is dropped.

    Raises:
        UserError: it was also asked for what ours does not do.
    """
    if os.environ.pop(_ACCELERATE_FSDP, "false").lower() != "true":
        return False
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise UserError("weights are not offloaded to the CPU: set fsdp_offload_params to false in accelerate's configuration file")
    return True


def join(on_cpu: bool, split: bool = False) -> None:
    """Open the process group of a launched run.

    Raises:
        UserError: a model is to be split, and there is one process only.
    """
    refuse_half_a_launch()
    if split and world_size() == 1:
        cure = "start them with torchrun or accelerate launch, or set it to false"
        raise UserError(f"system.fsdp splits a model over several processes: {cure}")
    # Under it transformers would load weights on the first process only.
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
    """Return when all processes have arrived here."""
    if world_size() > 1:
        from torch import distributed

        distributed.barrier()


def gather(share: Sequence[Item]) -> list[Item]:
    """All processes' items; in the order dealt, where process r holds items r, r + N, r + 2 N, ... of N processes."""
    if world_size() == 1:
        return list(share)
    from torch import distributed

    shares: list[Any] = [None] * world_size()
    distributed.all_gather_object(shares, list(share))
    longest = max(map(len, shares))
    return [held[index] for index in range(longest) for held in shares if index < len(held)]


def deal(items: Sequence[Item]) -> Sequence[Item]:
    """This process's share: every N-th item, none twice."""
    return items[rank() :: world_size()]


@contextmanager
def alone() -> Iterator[None]:
    """Child processes started inside the block are independent runs."""
    held = {name: os.environ.pop(name) for name in _LAUNCHER if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


def obeyed(numbers: Iterable[int]) -> list[signal.Signals]:
    """The signals to handle: all, except a SIGHUP that `nohup` has disabled."""
    nohup = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.Signals(number) for number in numbers if not (nohup and number == signal.SIGHUP)]


def end_with_parent() -> None:
    """If a runner started this process, get SIGTERM (save and exit) when the runner dies for any reason. Linux only."""
    parent = os.environ.pop(PARENT, "")
    if not parent.isdigit() or not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)
