"""A hub on this machine: what Hugging Face's own client asks for, answered from directories `models/OWNER/NAME`, `datasets/OWNER/NAME`."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A running server.

    Attributes:
        root: the directory that it serves.
        endpoint: for HF_ENDPOINT.
        gated: names that answer with this status and the hub's word for "accept the licence first".
        asked: every request so far.
    """

    root: Path
    endpoint: str = ""
    gated: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def repository(self, kind: str, name: str) -> Path:
        path = self.root / kind / name
        path.mkdir(parents=True, exist_ok=True)
        return path


@contextlib.contextmanager
def running_hub(root: Path) -> Iterator[Hub]:
    """Serve a directory until the end of the block."""
    hub = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # the base class calls it so
        self.hub.asked.append(f"{self.command} {self.path}")

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes = b"") -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.split("/") if part]
        api, parts = parts[:1] == ["api"], parts[1:] if parts[:1] == ["api"] else parts
        kind = parts[0] if parts[:1] in (["models"], ["datasets"]) else "models"
        parts = parts[1:] if parts[:1] == [kind] else parts
        name, rest = "/".join(parts[:2]), parts[2:]
        repository = self.hub.root / kind / name
        if not parts:
            self._send(200)
        elif not repository.is_dir():
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif name in self.hub.gated:
            self._refuse(self.hub.gated[name], "GatedRepo", f"Access to {name} is restricted")
        elif len(rest) > 1 and rest[1] not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
        elif api:
            self._describe(repository, name, rest, body)
        else:
            self._file(repository, "/".join(rest[2:]))

    def _describe(self, repository: Path, name: str, rest: list[str], body: bytes) -> None:
        files = sorted(path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file())
        if rest[:1] in ([], ["revision"]):
            siblings = [{"rfilename": file} for file in files]
            self._json({"id": name, "_id": name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})
        elif rest[0] == "tree":
            self._json(self._tree(repository, files, "/".join(rest[2:])))
        elif rest[0] == "paths-info":
            paths = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
            self._json(_entries(repository, files, paths))
        else:
            self._refuse(404, "EntryNotFound", "Entry not found")

    def _tree(self, repository: Path, files: list[str], below: str) -> list[dict[str, Any]]:
        inside = [file for file in files if not below or file.startswith(f"{below}/")]
        if "recursive=True" not in self.path and "recursive=true" not in self.path:
            depth = below.count("/") + 1 if below else 0
            inside = sorted({"/".join(file.split("/")[: depth + 1]) for file in inside})
        return _entries(repository, files, inside)

    def _file(self, repository: Path, file: str) -> None:
        path = repository / file
        if not path.is_file():
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        content = path.read_bytes()
        self._send(200, content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT})

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for header, value in (headers or {}).items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entries(repository: Path, files: list[str], paths: list[str]) -> list[dict[str, Any]]:
    found = []
    for path in paths:
        if path in files:
            content = (repository / path).read_bytes()
            found.append({"type": "file", "path": path, "size": len(content), "oid": _oid(content)})
        elif any(file.startswith(f"{path}/") for file in files):
            found.append({"type": "directory", "path": path, "oid": "0", "size": 0})
    return found


def _oid(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
