"""Freed memory stays with the process: counted in page faults of a fresh process, never in seconds."""

import ctypes
import os
import subprocess
import sys

import pytest

from kava.runtime.heap import keep_freed_memory

# 40 blocks of 20 MiB, one after the other and written to: 5,120 pages each.
SCRIPT = """
import resource, sys
from kava.runtime.heap import keep_freed_memory
kept = keep_freed_memory() if "keep" in sys.argv else None
def write():
    block = bytearray(20 * 2**20)
    for place in range(0, len(block), 4096):
        block[place] = 1
write()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    write()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str, **variables: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], env=os.environ | variables, capture_output=True, text=True, check=True
    )
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None) if os.name == "posix" else None, "mallopt"), reason="another C library than glibc")
def test_blocks_come_again_without_page_faults() -> None:
    assert faults("keep")[0] == "True"
    assert faults("keep")[1] < 1000 < faults()[1]


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not keep_freed_memory()
