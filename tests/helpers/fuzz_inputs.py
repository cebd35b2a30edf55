"""Broken input of every kind, as strategies: bytes that were damaged, documents that were edited, and how to count what was tried."""

import codecs
import json
import os
import re
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# Inputs that each test generates. `test_fuzz_count.py` sees that they add up to what the project promises.
INPUTS = {
    "configuration files": 250, "configurations edited": 250, "configurations that train": 30, "options": 120,
    "data files damaged": 350, "data rows edited": 300, "data files that train": 40,
    "result files damaged": 200, "result files edited": 250, "reports": 25,
    "checkpoints damaged": 120, "checkpoints edited": 100, "runs resumed": 25, "saved steps": 40,
}  # fmt: skip
PROMISED = 2_000
# KAVA_FUZZ=10 tries ten times as many, KAVA_FUZZ=0.1 a tenth.
SCALE = float(os.environ.get("KAVA_FUZZ", "1"))

# JSON (and YAML) as text, for values that Python's writer would not give.
ODD_VALUES = [
    "null", "true", "false", "-1", "0", "1", "0.5", "-0.0", "1e400", "-1e400", "NaN", "Infinity", "-Infinity", "1e-320",
    "9" * 30, "9" * 5_000, '""', '" "', '"\\u0000"', '"\\ud800"', '"\\n\\r\\t"', '"' + "long " * 2_000 + '"', '"x; rm -rf ~"',
    '"$(touch owned)"', '"../../x"', '"[/bold]"', '"[red]x"', '"\\u001b[31m"', '"\\u2028"', '"7"', '"nan"', '"no"', '"kava"',
    '"~nobody_here/x"', '"' + "x/" * 3_000 + '"', "[]", "[null]", "[[1], {}]", '["a", 1, null]', "{}", '{"a": 1}', '{"": {}}',
    "[" * 300 + "]" * 300, "[" * 3_000 + "]" * 3_000, '{"a":' * 1_500 + "1" + "}" * 1_500,
]  # fmt: skip
ODD_BYTES = [
    b"", b"\0", b"\xff\xfe\x00", b"\n", b"\r\n", b"{", b"[", b"]", b'{"a": NaN}', b"PAR1", b"\x1f\x8b\x08", b"\x89PNG\r\n", b"null",
    b"- a\n- b", b"a: b: c", b"[" * 3_000, b'{"a":' * 3_000, b"1" * 6_000, b"&a [*a]", b"a: &a {b: *a}",
    b"!!python/object/apply:os.getcwd []", b"\xed\xa0\x80", b"\x00" * 4_096,
]  # fmt: skip
CHANGES = ["set", "set", "set", "set", "remove", "rename", "add", "double"]


def fuzz(count: int, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
    """Run a check on `count` generated inputs at once; fails where fewer came."""
    count = max(1, round(count * SCALE))

    def run(check: Callable[..., None]) -> None:
        tried = 0

        @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
        @given(**strategies)
        def each(**drawn: Any) -> None:
            nonlocal tried
            tried += 1
            check(**drawn)

        each()
        assert tried >= count, f"only {tried} of {count} inputs were generated"

    return run


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """What can happen to a file on its way: cut, flipped, overwritten, repeated, in another encoding, not a file of this kind at all."""
    kind = draw(st.sampled_from(["cut", "flip", "flip", "junk", "insert", "repeat", "drop", "odd", "bom", "crlf", "utf16", "latin", "nul"]))
    where, size = draw(st.floats(0, 1)), draw(st.integers(1, 60))
    junk = draw(st.binary(min_size=1, max_size=40)) if kind in ("junk", "insert") else b""
    odd = draw(st.sampled_from(ODD_BYTES)) if kind == "odd" else b""
    bit = draw(st.integers(0, 7)) if kind == "flip" else 0

    def apply(content: bytes) -> bytes:
        at = min(int(where * len(content)), max(len(content) - 1, 0))
        head, tail = content[:at], content[at:]
        changed: dict[str, Callable[[], bytes]] = {
            "cut": lambda: head,
            "flip": lambda: head + bytes([tail[0] ^ (1 << bit)]) + tail[1:] if tail else b"\1",
            "junk": lambda: head + junk + tail[len(junk) :],
            "insert": lambda: head + junk + tail,
            "repeat": lambda: head + tail[:size] + tail,
            "drop": lambda: head + tail[size:],
            "odd": lambda: odd,
            "bom": lambda: codecs.BOM_UTF8 + content,
            "crlf": lambda: content.replace(b"\n", b"\r\n"),
            "utf16": lambda: content.decode("utf-8", "replace").encode("utf-16"),
            "latin": lambda: content.replace(b"a", b"\xe9"),
            "nul": lambda: head + b"\0" + tail[1:],
        }
        return changed[kind]()

    apply.__name__ = f"{kind} at {where:.3f}"
    return apply


def places(content: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a nested document, the document itself first."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [here, *(place for key, value in inside for place in places(value, (*here, key)))]


@st.composite
def edited(draw: st.DrawFn, content: Any, keys: tuple[str, ...] = ()) -> str:
    """A document as JSON text (which is YAML too) with one to three places set to odd values, removed, renamed, doubled or added."""
    document = json.loads(json.dumps(content))
    values: list[str] = []

    def odd() -> str:
        values.append(draw(st.sampled_from(ODD_VALUES)))
        return f"@@{len(values) - 1}@@"

    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        place = draw(st.sampled_from(places(document)))
        if not place:
            return draw(st.sampled_from(ODD_VALUES))
        *parents, last = place
        parent = document
        for step in parents:
            parent = parent[step]
        kind = draw(st.sampled_from(CHANGES)) if isinstance(parent, dict) else "set"
        if kind == "remove":
            del parent[last]
        elif kind == "rename":
            parent[draw(st.sampled_from([*keys, "", "x", f"{last} ", last.upper()]))] = parent.pop(last)
        elif kind == "add":
            parent[draw(st.sampled_from(keys or ("x",)) | st.text(max_size=4))] = odd()
        else:
            # Of a key given twice, readers keep the last.
            parent[f"{last}@@twice" if kind == "double" else last] = odd()
    texts = json.dumps(document).replace("@@twice", "")
    return re.sub('"@@([0-9]+)@@"', lambda mark: values[int(mark[1])], texts)
