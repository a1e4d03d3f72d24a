"""A store to get into trouble with, and what was said of it: every hint, and where it was made."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hints_collected import collected

from deltastore.cli.main import main
from deltastore.errors import DeltastoreError

_SHELL = re.compile(r"`([^`]+)`")
_DEEP = 12

Case = Callable[["World"], None]
CASES: dict[str, tuple[Case, tuple[str, ...]]] = {}


def case(*keys: str) -> Callable[[Case], Case]:
    """A state and the way out of it. ``keys`` are the hints that it has shown."""

    def register(function: Case) -> Case:
        assert function.__name__ not in CASES
        CASES[function.__name__] = (function, keys)
        return function

    return register


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def hint(self) -> str:
        """What it said to do; of ``verify``, all it said."""
        return self.err.rpartition("hint: ")[2].strip() or self.out

    @property
    def commands(self) -> list[str]:
        """The commands in the hint."""
        return _SHELL.findall(self.hint)


@dataclass
class World:
    """A store with ``m:v1`` (tag ``t1``), ``m:v2`` that was removed, and ``m:v3`` (tag ``t3``)."""

    root: Path
    monkeypatch: pytest.MonkeyPatch
    seen: list[tuple[DeltastoreError, list[tuple[str, int]]]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    elsewhere: set[str] = field(default_factory=set)

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def names(self) -> Path:
        return self.store / "names"

    def path(self, name: str) -> str:
        """A checkpoint: ``base``, ``post1`` to ``post4``, ``new``, ``other``, ``unrelated``."""
        return str(self.root / name)

    def pair(self, post: str = "post3", name: str = "m", base: str = "base") -> list[str]:
        return ["--base", self.path(base), "--post", self.path(post), "--name", name]

    def apply(self, ref: str = "m:v3", base: str = "new", out: str = "out") -> list[str]:
        return ["apply", ref, "--base", self.path(base), "--out", str(self.root / out)]

    def record(self, version: int) -> Path:
        return self.names / "m" / f"v{version}.json"

    def blob(self, kind: str) -> Path:
        """The ``manifest``, the ``config`` or a ``part`` of ``m:v3``."""
        blobs = self.store / "blobs" / "sha256"
        path = blobs / json.loads(self.record(3).read_bytes())["digest"][7:]
        manifest = json.loads(path.read_bytes())
        if kind == "config":
            path = blobs / manifest["config"]["digest"][7:]
        if kind == "part":
            path = blobs / manifest["layers"][0]["digest"][7:]
        path.chmod(0o644)
        return path

    def run(self, *argv: str) -> Ran:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(argv))
        assert code != 1, err.getvalue()
        ran = Ran(argv, code, out.getvalue(), err.getvalue())
        self.said.append(ran.hint)
        return ran

    def fails(self, *argv: str) -> Ran:
        """Run what cannot work in this state."""
        ran = self.run(*argv)
        assert ran.code != 0, ran
        return ran

    def works(self, *argv: str) -> Ran:
        ran = self.run(*argv)
        assert ran.code == 0, ran
        return ran

    def follow(self, ran: Ran, *, fill: dict[str, str] | None = None, codes: Any = (0,)) -> None:
        """Run the commands in a hint, in order, as somebody would type them.

        Args:
            ran: What gave the hint.
            fill: What stands for what in the commands.
            codes: How they may end.
        """
        assert ran.commands, ran
        for command in ran.commands:
            if command.startswith("--"):  # an option, which the case gives itself
                continue
            for placeholder, text in (fill or {}).items():
                command = command.replace(placeholder, shlex.quote(text))
            # "of the same pair" is said in words.
            if command == "deltastore extract --rehash":
                self.works("extract", "--rehash", *self.pair())
            elif command.startswith("deltastore ") and not set(command) & set("$|&;"):
                ended = self.run(*shlex.split(command)[1:])
                # What else is damaged is shown, and is no way out by itself.
                assert ended.code in (*codes, *((40,) if "verify" in command else ())), ended
            else:
                tools = Path(sys.executable).parent
                environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
                done = subprocess.run(
                    ["bash", "-c", command], env=environment, capture_output=True, text=True
                )
                assert done.returncode == 0, (command, done)

    def is_well(self) -> None:
        """All commands of a store that nothing is wrong with."""
        for command in ("list", "verify", "gc", "reindex", "doctor", "list"):
            self.works(command)
        self.works("extract", *self.pair("post4"))
        self.works("gc", "--grace", "0")
        self.works("verify")

    def shows(self, key: str) -> None:
        """Take note of a hint that another process has shown."""
        self.elsewhere.add(key)

    def shown(self) -> set[str]:
        """The keys of the hints that were shown."""
        found = set(self.elsewhere)
        texts = [*self.said, *(error.hint for error, _ in self.seen)]
        for key, hint in collected().items():
            if hint.called:
                made = any(
                    path == hint.path and hint.first <= line <= hint.last
                    for _, frames in self.seen
                    for path, line in frames
                )
                if made:
                    found.add(key)
            elif any(hint.pattern.search(text) for text in texts):
                found.add(key)
        return found

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Take note of every error that is made, and where."""
        made = DeltastoreError.__init__

        def noted(error: DeltastoreError, *args: Any, **facts: Any) -> None:
            made(error, *args, **facts)
            frames, frame = [], sys._getframe(1)
            while frame is not None and len(frames) < _DEEP:
                frames.append((frame.f_code.co_filename, frame.f_lineno))
                frame = frame.f_back  # type: ignore[assignment]
            self.seen.append((error, frames))

        with self.monkeypatch.context() as patched:
            patched.setattr(DeltastoreError, "__init__", noted)
            yield


def edit(path: Path, **fields: Any) -> None:
    """Change fields of a document."""
    document = json.loads(path.read_bytes()) | fields
    path.write_text(json.dumps(document, sort_keys=True, separators=(",", ":")))


def in_its_place(path: Path) -> None:
    """Put a directory with something in it where a file is."""
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "found").write_text("by somebody")


def write_checkpoint(
    directory: Path, tensors: dict[str, np.ndarray], *, file: str = "model.safetensors"
) -> str:
    """Write float32 arrays as bfloat16, with a config."""
    header: dict[str, Any] = {}
    data = b""
    for name, array in tensors.items():
        raw = (array.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / file).write_bytes(len(text).to_bytes(8, "little") + text + data)
    (directory / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    return str(directory)


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """A base; with a seed, what training has made of it."""
    random = np.random.default_rng(1)
    made = {
        "embed.weight": random.normal(0, 0.02, (96, 64)),
        "layer.0.weight": random.normal(0, 0.02, (64, 64)),
        "norm.weight": np.ones(64),
    }
    if seed:
        own = np.random.default_rng(seed)
        made = {
            n: a + (n != "norm.weight") * own.laplace(0, 2e-4, a.shape) for n, a in made.items()
        }
    return made


def build(root: Path) -> None:
    """The models and the store, once for all cases."""
    write_checkpoint(root / "base", tensors())
    for number in range(1, 5):
        write_checkpoint(root / f"post{number}", tensors(number))
    write_checkpoint(root / "new", tensors(9))
    renamed = {f"model.{name}": array for name, array in tensors(9).items()}
    write_checkpoint(root / "renamed", renamed)
    narrow = tensors(9) | {"layer.0.weight": np.ones((32, 64))}
    write_checkpoint(root / "other", narrow)
    random = np.random.default_rng(77)
    unrelated = {n: random.normal(0, 0.02, a.shape) for n, a in tensors().items()}
    write_checkpoint(root / "unrelated", unrelated)
    stranger = {"other.weight": tensors()["layer.0.weight"], "norm": np.ones(64)}
    write_checkpoint(root / "stranger", stranger)
    moved = stranger | {"other.weight": tensors(5)["layer.0.weight"]}
    write_checkpoint(root / "stranger2", moved)
    store = ["-q", "--store", str(root / "store")]
    for number in range(1, 4):
        pair = ["--base", str(root / "base"), "--post", str(root / f"post{number}")]
        assert main([*store, "extract", *pair, "--name", "m", "--tag", f"t{number}"]) == 0
    assert main([*store, "rm", "m:v2"]) == 0


def copy(template: Path, root: Path) -> None:
    """A store of one's own; the models are shared, by links to their directories."""
    shutil.copytree(template / "store", root / "store", symlinks=True)
    for model in template.iterdir():
        if model.name != "store":
            shutil.copytree(model, root / model.name)
