"""Memory that a step frees stays with the process on a CPU: the next step asks for the same again."""

import ctypes
import os

# Larger blocks are the system's own pages in any case: glibc takes no larger threshold.
LARGEST_KEPT_BLOCK = 32 * 2**20
MOST_KEPT = 2**30
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1


def keep_freed_memory() -> bool:
    """Let glibc's allocator keep up to 1 GiB of freed memory; returns whether it does.

    As it is, it gives memory back whenever a few of a step's tensors lie free at the end of the heap, and the system then has to clear the
    same pages for the next ones: of the mini experiment's step a tenth. The peak stays what it is. Nothing happens with another C
    library, or where the user has set the allocator by environment variables.
    """
    if any(name == "GLIBC_TUNABLES" or (name.startswith("MALLOC_") and name.endswith("_")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # Either of them alone ends glibc's own adjustment of both.
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK)) and bool(mallopt(_TRIM_THRESHOLD, MOST_KEPT))
