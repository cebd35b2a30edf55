"""One command in this process, judged as its user would: an exit code, one clear line of trouble, no traceback, nothing half written."""

import io
import logging
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from kava import cli

LONGEST_LINE = 3_000


def kava(*words: str, codes: tuple[int, ...] = (0, 2), boxed: bool = False) -> tuple[int, str, str]:
    """Run `kava words` through the command line's own entry, which alone turns a `UserError` into exit code 2; anything else escapes.

    Returns its exit code, what it printed and what it complained of; `boxed` where the option parser may complain in its own way.
    """
    # Real byte streams: text that no encoding takes must fail here as it would on a terminal.
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, newline="\n") for errors in ("strict", "backslashreplace"))
    code: object = 0
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            try:
                cli.main(None, list(words))
            except SystemExit as end:
                code = end.code or 0
    finally:
        logging.disable(logging.NOTSET)
    said, complaint = (_text(stream) for stream in (out, err))
    assert code in codes, (code, complaint)
    assert "Traceback" not in complaint
    if code == 2:
        lines = [line for line in complaint.split("\n") if line.strip()]
        if boxed and lines[-1].startswith(("╰", "+")):
            return 2, said, complaint
        assert lines[-1].startswith("kava: "), complaint
        assert len(lines[-1]) <= LONGEST_LINE, len(lines[-1])
        assert all(character.isprintable() for character in lines[-1]), lines[-1]
    return int(str(code)), said, complaint


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode("utf-8")


def half_written(place: Path) -> list[Path]:
    """Whatever a write that did not end would have left."""
    return [path for path in place.rglob(".*") if path.name.endswith((".tmp", ".writing", ".old"))]
