"""A disk that is full, or that can only be read: the run ends in one sentence, what it had is whole, and with room again it goes on."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.faulty_runs import ForkServer, assert_same_ending, ending, newest
from kava.runtime.atomic import verify
from kava.train.resume import checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.faults]

SIZE = "24m"


class Disk:
    """A small file system of its own, and the end of a run that it was large enough for."""

    def __init__(self, root: Path, server: ForkServer) -> None:
        self.place, self.server, self.run = root / "disk", server, root / "disk" / "run"
        server.train(root / "reference")
        self.expected: dict[str, Any] = ending(root / "reference")
        server.train(root / "begun", fault=["backward", 13, 15], code=143)
        self.begun = root / "begun"

    def fresh(self) -> None:
        """The run as it was stopped after step 7, on an empty disk."""
        for entry in self.place.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        shutil.copytree(self.begun, self.run)

    def leave(self, room: int) -> None:
        """Fill the disk up to so many bytes."""
        free = os.statvfs(self.place)
        (self.place / "ballast").write_bytes(b"\0" * max(0, free.f_bavail * free.f_frsize - room))

    def resume(self, code: int) -> str:
        """Go on; the log lies on another disk."""
        log = self.place.with_name("resumed.log")
        log.unlink(missing_ok=True)
        self.server.train(self.run, "--resume", code=code, log=log)
        return log.read_text()


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    root = tmp_path_factory.mktemp("disks")
    (root / "disk").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(root / "disk")], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        server = ForkServer(root / "cache")
        try:
            yield Disk(root, server)
        finally:
            server.close()
    finally:
        # Lazily: a process that a failed test left behind must not keep the mount.
        subprocess.run(["umount", "--lazy", str(root / "disk")], check=True)


def refused(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("kava: ")]
    assert len(lines) == 1, said
    return lines[0]


@pytest.mark.parametrize("room", [0, 4_096, 40_000, 150_000])
def test_a_full_disk_keeps_what_is_whole_and_the_run_goes_on_with_room_again(disk: Disk, room: int) -> None:
    """More and more room, so that each of the writers is the one that finds none: log, events, weights, optimizer, the best checkpoint."""
    disk.fresh()
    disk.leave(room)
    line = refused(disk.resume(code=2))
    assert "No space left on device" in line
    assert "free some space" in line
    last = newest(disk.run)
    assert [verify(checkpoint) for checkpoint in [*checkpoints(disk.run), disk.run / "best_checkpoint"]].count(None) >= 3, last
    assert verify(last) is None
    (disk.place / "ballast").unlink()
    disk.resume(code=0)
    assert_same_ending(disk.run, disk.expected)


def test_a_directory_that_can_only_be_read(disk: Disk) -> None:
    disk.fresh()
    before = {path: path.read_bytes() for path in disk.run.rglob("*") if path.is_file()}
    subprocess.run(["mount", "-o", "remount,ro", str(disk.place)], check=True)
    try:
        line = refused(disk.resume(code=2))
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk.place)], check=True)
    assert "Read-only file system" in line
    assert {path: path.read_bytes() for path in disk.run.rglob("*") if path.is_file()} == before
    disk.resume(code=0)
    assert_same_ending(disk.run, disk.expected)
