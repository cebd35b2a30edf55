"""Long work says how far it is; short work, and a program that only imports the package, says nothing."""

import contextlib
import io
import os
import threading
import time
from typing import Literal

import pytest

from kava.runtime import stage as module
from kava.runtime.stage import duration, set_progress_stream, stage


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.01)
    monkeypatch.setattr(module, "_stream", None)


def lines_of(stream: io.StringIO, count: int) -> list[str]:
    """The first lines, as soon as they are there."""
    deadline = time.monotonic() + 20
    while stream.getvalue().count("\n") < count and time.monotonic() < deadline:
        time.sleep(0.005)
    return stream.getvalue().splitlines()[:count]


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_long_work_says_how_far_it_is(name: Literal["stdout", "stderr"], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys." + name, stream)
    monkeypatch.setattr(time, "perf_counter", map(float, range(0, 1_000_000, 40)).__next__)
    set_progress_stream(name)
    with stage("answering", 1400, "questions") as advance:
        advance(700)
        assert lines_of(stream, 2) == [
            "answering: 700 of 1,400 questions, 40 s, about 40 s left",
            "answering: 700 of 1,400 questions, 1 minute, about 1 minute left",
        ]
    written = stream.getvalue()
    time.sleep(0.05)
    assert stream.getvalue() == written  # nothing comes afterwards


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_reader_who_has_left_ends_the_lines_and_not_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1) as stream:
        monkeypatch.setattr("sys.stdout", stream)
        set_progress_stream("stdout")
        with stage("answering"):
            speaker = next(thread for thread in threading.enumerate() if "speak" in thread.name)
            speaker.join(20)
            assert not speaker.is_alive()
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            stream.close()


def test_the_total_may_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    set_progress_stream("stdout")
    with stage("loading a model"):
        assert lines_of(stream, 1) == ["loading a model: 0 s so far"]


def test_short_work_is_silent_and_leaves_no_thread(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 30)
    set_progress_stream("stdout")
    before = threading.active_count()
    during = []

    def fail() -> None:
        with stage("answering"):
            during.append(threading.active_count())
            raise ValueError("no good")

    with pytest.raises(ValueError, match="no good"):
        fail()
    assert (during, threading.active_count()) == ([before + 1], before)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("stream", "rank"), [(None, "0"), ("stdout", "1")])
def test_programs_and_other_processes_are_silent(stream: Literal["stdout"] | None, rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    set_progress_stream(stream)
    before = threading.active_count()
    with stage("answering", 10, "questions") as advance:
        advance(1)
        assert threading.active_count() == before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (41.0, "41 s"),
        (59.6, "1 minute"),
        (65.0, "1 minute"),
        (100.0, "2 minutes"),
        (3599.0, "60 minutes"),
        (5400.0, "1.5 hours"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
