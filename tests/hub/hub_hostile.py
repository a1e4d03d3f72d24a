"""What a hostile hub does, as behaviours of the tests' server.

A behaviour is given to ``HubServer.behaviours`` for a kind of request: ``api`` (the list of files),
``get`` (a file, of the hub) or ``cdn`` (a file, where the hub sends us).
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from typing import Any

from hub_server import Behaviour, HubServer, _Handler

PIECE = b"x" * (1 << 16)
LONG_S = 30.0
"""How long a server goes on that would go on for ever."""


def only(name: str, behaviour: Behaviour) -> Behaviour:
    """The behaviour for one file alone."""
    return lambda handler, path: path.endswith(name) and behaviour(handler, path)


def listed(hub: HubServer, repo: str = "org/base") -> dict[str, Any]:
    """What the hub says of a repository, to be changed."""
    commit = hub.repositories[repo].refs["main"]
    files = hub.repositories[repo].commits[commit]
    siblings: list[dict[str, Any]] = []
    for name, file in files.items():
        entry: dict[str, Any] = {"rfilename": name, "size": file.size, "blobId": file.git_oid}
        if file.lfs:
            entry["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
        siblings.append(entry)
    return {"id": repo, "sha": commit, "siblings": siblings}


def says(document: Any) -> Behaviour:
    """Answers with a JSON document, or with bytes."""

    def behaviour(handler: _Handler, path: str) -> bool:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        handler.head(200, {"Content-Length": str(len(data))})
        handler.wfile.write(data)
        return True

    return behaviour


def with_headers(headers: dict[str, str], status: int = 200, body: bytes = b"{}") -> Behaviour:
    """Answers with these headers."""

    def behaviour(handler: _Handler, path: str) -> bool:
        handler.head(status, {"Content-Length": str(len(body))} | headers)
        handler.wfile.write(body)
        return True

    return behaviour


def endless(headers: dict[str, str] | None = None, *, chunked: bool = False) -> Behaviour:
    """Sends without an end."""

    def behaviour(handler: _Handler, path: str) -> bool:
        more = {"Transfer-Encoding": "chunked"} if chunked else {"Connection": "close"}
        handler.head(200, (headers or {}) | more)
        until = time.monotonic() + LONG_S
        while time.monotonic() < until:
            frame = b"%x\r\n%s\r\n" % (len(PIECE), PIECE) if chunked else PIECE
            handler.wfile.write(frame)
        return True

    return behaviour


def inflating(length: int) -> Behaviour:
    """Sends what becomes so many bytes when it is unpacked."""
    data = gzip.compress(b" " * length)
    return with_headers({"Content-Encoding": "gzip"}, body=data)


def dripping(data: bytes, every_s: float = 0.2) -> Behaviour:
    """Sends these bytes, of headers or body, one by one."""

    def behaviour(handler: _Handler, path: str) -> bool:
        until = time.monotonic() + LONG_S
        for number in range(len(data)):
            handler.wfile.write(data[number : number + 1])
            handler.wfile.flush()
            time.sleep(every_s)
            if time.monotonic() > until:
                break
        handler.close_connection = True
        return True

    return behaviour


def dripping_body(length: int) -> Behaviour:
    """Sends headers at once, and then a byte now and then; of a part, if it was asked for."""

    def behaviour(handler: _Handler, path: str) -> bool:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length
        handler.wfile.write(head)
        return dripping(b"x" * length)(handler, path)

    return behaviour


def dripping_chunk_size(handler: _Handler, path: str) -> bool:
    """A chunk whose size is never told to the end: no bytes come, though the connection lives."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")
    return dripping(b"x" * 10_000)(handler, path)


def informing(handler: _Handler, path: str) -> bool:
    """Says over and over that the answer will come."""
    until = time.monotonic() + LONG_S
    while time.monotonic() < until:
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
    return True


def silent(handler: _Handler, path: str) -> bool:
    """Says nothing."""
    time.sleep(LONG_S)
    return True


def redirecting(to: str | Callable[[str], str], status: int = 302) -> Behaviour:
    """Sends us elsewhere."""

    def behaviour(handler: _Handler, path: str) -> bool:
        target = to if isinstance(to, str) else to(path)
        handler.head(status, {"Location": target, "Content-Length": "0"})
        return True

    return behaviour


def lying_part(content_range: str, body: bytes, length: int | None = None) -> Behaviour:
    """Answers a request for a part with this."""

    def behaviour(handler: _Handler, path: str) -> bool:
        stated = len(body) if length is None else length
        handler.head(206, {"Content-Range": content_range, "Content-Length": str(stated)})
        handler.wfile.write(body)
        handler.close_connection = stated != len(body)
        return True

    return behaviour


def empty_part(handler: _Handler, path: str) -> bool:
    """The right headers for a part, and none of its bytes."""
    begin, end = (handler.headers.get("Range") or "bytes=0-0").removeprefix("bytes=").split("-")
    size = path.rpartition("?")[2] or "0"
    handler.head(206, {"Content-Range": f"bytes {begin}-{end}/{size}", "Content-Length": "0"})
    return True


def with_odd_headers(headers: dict[str, str], hub: HubServer, name: str) -> Behaviour:
    """Sends the right bytes of a small file, and these headers."""

    def behaviour(handler: _Handler, path: str) -> bool:
        _, org, repo, _, commit, *_ = path.split("/")
        data = hub.repositories[f"{org}/{repo}"].commits[commit][name].path.read_bytes()
        handler.head(200, {"Content-Length": str(len(data))} | headers)
        handler.wfile.write(data)
        return True

    return only(name, behaviour)
