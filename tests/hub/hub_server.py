"""A small model hub on loopback: as much of the hub's HTTP as huggingface_hub asks of it.

Repositories are directories, published as commits. Weights are served like LFS files: the hub
redirects to a second server, the "CDN", on a port of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".bin")


@dataclass
class File:
    path: Path
    size: int
    sha256: str
    git_oid: str
    lfs: bool

    @classmethod
    def of(cls, path: Path) -> File:
        data = path.read_bytes()
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        digest = hashlib.sha256(data).hexdigest()
        return cls(path, len(data), digest, oid, path.name.endswith(LFS))

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass
class Repository:
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False


@dataclass(frozen=True)
class Request:
    """``kind``: api, head, get (of the hub) or cdn."""

    kind: str
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Fault:
    """What goes wrong with the next requests of a kind."""

    kind: str
    times: int
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    body: bytes = b""
    name: str = ""


Behaviour = Callable[["_Handler", str], bool]
"""What a hostile hub does with a request of a kind for a path; False if it answers as any other."""


class HubServer:
    """The hub; ``with`` starts and stops it."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.sent: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.before: Callable[[Request], None] = lambda request: None
        self.behaviours: dict[str, Behaviour] = {}
        self.ignore_ranges = False
        self.corrupt: set[str] = set()
        self.links = 0
        self.expired: set[str] = set()
        self.lock = threading.Lock()
        self._servers = [self._serve("hub"), self._serve("cdn")]

    # --- what tests do to it

    def publish(self, repo: str, directory: Path, ref: str = "main") -> str:
        """Make a directory the repository's next commit; returns the commit."""
        files = {
            path.relative_to(directory).as_posix(): File.of(path)
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }
        text = repo + json.dumps({name: file.sha256 for name, file in files.items()})
        commit = hashlib.sha1(text.encode()).hexdigest()
        repository = self.repositories.setdefault(repo, Repository())
        repository.commits[commit] = files
        repository.refs[ref] = commit
        return commit

    def fail(self, kind: str, status: int, times: int = 1, **headers: str) -> None:
        """Answer the next requests of a kind with an error."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(kind, times, status, named))

    def cut(self, kind: str, after: int, times: int = 1) -> None:
        """Cut the connection of the next requests of a kind in the middle of the body."""
        self.faults.append(Fault(kind, times, cut_after=after))

    def expire_links(self) -> None:
        """Addresses that were given out for files on the CDN are no longer good."""
        with self.lock:
            self.expired = {str(number) for number in range(self.links)}

    def reset(self) -> None:
        """Count from zero."""
        with self.lock:
            self.requests.clear()
            self.sent.clear()

    def count(self, kind: str, containing: str = "") -> int:
        """How many requests of a kind there were."""
        return sum(r.kind == kind and containing in r.path for r in self.requests)

    @property
    def endpoint(self) -> str:
        return self._address(0)

    @property
    def elsewhere(self) -> str:
        """Another server, whose requests are noted as ``cdn``."""
        return self._address(1)

    # --- the server

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _address(self, number: int) -> str:
        return f"http://127.0.0.1:{self._servers[number].server_address[1]}"

    def _serve(self, role: str) -> ThreadingHTTPServer:
        hub = self

        class Handler(_Handler):
            def answer(self) -> None:
                (hub.hub_answer if role == "hub" else hub.cdn_answer)(self)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        return server

    def record(self, handler: _Handler, kind: str, name: str) -> Fault | None:
        """Note a request; the fault it meets, if any."""
        token = (handler.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        request = Request(kind, handler.command, name, handler.headers.get("Range"), token)
        with self.lock:
            self.requests.append(request)
            fault = next((f for f in self.faults if f.kind == kind and f.times > 0), None)
            if fault is not None:
                fault.times -= 1
        self.before(request)
        return fault

    def behaves(self, handler: _Handler, kind: str, path: str) -> bool:
        """Let a hostile hub answer; whether it did."""
        behaviour = self.behaviours.get(kind)
        if behaviour is None:
            return False
        try:
            return behaviour(handler, path)
        except OSError:  # the client hung up, which is right
            handler.close_connection = True
            return True

    def hub_answer(self, handler: _Handler) -> None:
        url = urlsplit(handler.path)
        # Taken apart before it is decoded: a revision may hold slashes.
        path = url.path
        api = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path
        )
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        body = handler.body()
        if not api and not file:
            # Not counted: the library asks for other things too, depending on where it runs.
            handler.refuse(404, "")
            return
        kind = "api" if api else "head" if handler.command == "HEAD" else "get"
        fault = self.record(handler, kind, unquote(path))
        if self.behaves(handler, kind, unquote(path)):
            return
        if fault is not None and fault.status:
            handler.refuse(fault.status, "", fault.headers)
        elif api:
            query = parse_qs(url.query)
            form = parse_qs(body.decode()) if body else {}
            self.api(handler, api[1], api[2] or "", unquote(api[3] or "main"), query, form)
        else:
            assert file is not None
            self.resolve(handler, file[1], unquote(file[2]), unquote(file[3]), fault)

    def find(self, handler: _Handler, repo: str, revision: str) -> str | None:
        """The commit; None if the request was refused."""
        repository = self.repositories.get(repo)
        token = (handler.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repository is None:
            # As the real one: a missing repository looks like a private one to strangers.
            handler.refuse(404 if token else 401, "RepoNotFound")
            return None
        if repository.token is not None and token != repository.token:
            code = "GatedRepo" if repository.gated else "RepoNotFound"
            handler.refuse((403 if token else 401) if repository.gated else 401, code)
            return None
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            handler.refuse(404, "RevisionNotFound")
            return None
        return commit

    def api(
        self,
        handler: _Handler,
        repo: str,
        what: str,
        revision: str,
        query: dict[str, list[str]],
        form: dict[str, list[str]],
    ) -> None:
        commit = self.find(handler, repo, revision)
        if commit is None:
            return
        files = self.repositories[repo].commits[commit]
        if what in ("", "revision"):
            blobs = "blobs" in query
            siblings = [_sibling(name, file, blobs=blobs) for name, file in files.items()]
            handler.json({"id": repo, "modelId": repo, "sha": commit, "siblings": siblings})
            return
        wanted = form.get("paths", list(files)) if what == "paths-info" else list(files)
        handler.json([_entry(name, files[name]) for name in wanted if name in files])

    def resolve(
        self, handler: _Handler, repo: str, revision: str, name: str, fault: Fault | None
    ) -> None:
        commit = self.find(handler, repo, revision)
        if commit is None:
            return
        file = self.repositories[repo].commits[commit].get(name)
        if file is None:
            handler.refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"'}
        if not file.lfs:
            self.send_file(handler, file, headers, "get", fault)
            return
        with self.lock:
            link, self.links = self.links, self.links + 1
        headers |= {
            "X-Linked-ETag": f'"{file.sha256}"',
            "X-Linked-Size": str(file.size),
            "Location": f"{self._address(1)}/{repo}/{commit}/{name}?link={link}",
        }
        handler.head(302, headers | {"Content-Length": "0"})

    def cdn_answer(self, handler: _Handler) -> None:
        url = urlsplit(handler.path)
        fault = self.record(handler, "cdn", unquote(url.path))
        if self.behaves(handler, "cdn", unquote(url.path)):
            return
        if fault is not None and fault.status:
            handler.refuse(fault.status, "", fault.headers)
        elif handler.headers.get("Authorization"):
            handler.refuse(400, "")  # as S3 does: a signed address and a token are one too many
        elif parse_qs(url.query).get("link", ["0"])[0] in self.expired:
            handler.refuse(403, "")
        else:
            _, org, name, commit, path = unquote(url.path).split("/", 4)
            file = self.repositories[f"{org}/{name}"].commits[commit][path]
            self.send_file(handler, file, {"ETag": f'"{file.sha256}"'}, "cdn", fault)

    def send_file(
        self,
        handler: _Handler,
        file: File,
        headers: dict[str, str],
        kind: str,
        fault: Fault | None,
    ) -> None:
        data, status = file.path.read_bytes(), 200
        if file.path.name in self.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range") or "")
        if match and not self.ignore_ranges:
            begin, end = int(match[1]), min(int(match[2] or file.size - 1) + 1, file.size)
            if begin >= file.size:
                headers = {"Content-Range": f"bytes */{file.size}"}
                handler.refuse(416, "", headers)
                return
            headers = headers | {"Content-Range": f"bytes {begin}-{end - 1}/{file.size}"}
            data, status = data[begin:end], 206
        handler.head(status, headers | {"Content-Length": str(len(data))})
        if handler.command == "HEAD":
            return
        cut = fault is not None and fault.cut_after is not None
        if fault is not None and fault.cut_after is not None:
            data = data[: fault.cut_after]
        # Counted first: the client may be done, and a test ask, before the write returns.
        with self.lock:
            self.sent[kind] += len(data)
        try:
            handler.wfile.write(data)
        except OSError:
            return
        if cut:
            handler.hang_up()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client hung up
            super().handle()

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def json(self, document: Any) -> None:
        data = json.dumps(document).encode()
        self.head(200, {"Content-Type": "application/json", "Content-Length": str(len(data))})
        self.wfile.write(data)

    def refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        data = json.dumps({"error": code or str(status)}).encode()
        named = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        length = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        self.head(status, (headers or {}) | named | length)
        if self.command != "HEAD":
            self.wfile.write(data)

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def _sibling(name: str, file: File, *, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": name}
    lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
    entry = {"rfilename": name, "size": file.size, "blobId": file.git_oid}
    return entry | ({"lfs": lfs} if file.lfs else {})


def _entry(name: str, file: File) -> dict[str, Any]:
    lfs = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    entry = {"type": "file", "path": name, "size": file.size, "oid": file.git_oid}
    return entry | ({"lfs": lfs} if file.lfs else {})
