"""The process that reads pickles: what it is given, and what is believed of its answer."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from multiprocessing import spawn
from pathlib import Path

import pytest
import torch

from deltastore.checkpoint import open_checkpoint, pickle_child
from deltastore.errors import (
    CheckpointCorruptError,
    CheckpointError,
    DeltastoreError,
    UnsafePickleError,
)

Python = Callable[[str], None]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.ones(2)}, path)
    return path


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Python:
    """Puts a script in the place of the interpreter."""

    def put(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable} -ISs\nimport os, sys, time\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(spawn, "get_executable", lambda: str(path))

    return put


def refused(weights: Path) -> DeltastoreError:
    with pytest.raises(CheckpointCorruptError) as caught:
        open_checkpoint(weights)
    assert len(caught.value.message) < 400 + len(str(weights))
    assert caught.value.message.isprintable()
    assert caught.value.hint
    return caught.value


def test_it_has_no_environment(
    weights: Path, tmp_path: Path, python: Python, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    python(f"open({str(tmp_path / 'seen')!r}, 'w').write(repr((dict(os.environ), sys.argv)))")
    refused(weights)
    seen = (tmp_path / "seen").read_text()
    assert "'-I', '-S'" in seen
    assert "hf_0123" not in seen
    assert "PYTHONPATH" not in seen
    assert "HOME" not in seen


def test_it_has_limits(weights: Path, python: Python) -> None:
    pytest.importorskip("resource")
    root = Path(pickle_child.__file__).parents[2]
    python(
        f"import resource; sys.path.append({str(root)!r})\n"
        "from deltastore.pickles import child\n"
        "child._limit()\n"
        "limits = 'AS', 'CPU', 'FSIZE', 'NOFILE', 'CORE', 'NPROC'\n"
        "found = [resource.getrlimit(getattr(resource, f'RLIMIT_{n}'))[1] for n in limits]\n"
        "print(f'corrupt {repr(found).encode().hex()} -')\n"
    )
    assert "[1073741824, 60, 0, 0, 0, 0]" in refused(weights).message


def test_memory_is_limited(weights: Path, python: Python) -> None:
    root = Path(pickle_child.__file__).parents[2]
    python(
        f"sys.path.append({str(root)!r})\n"
        "from deltastore.pickles import child\n"
        "child.places = lambda *_: bytes(2 << 30)\n"
        "child.main(int(sys.argv[-1]))\n"
    )
    assert "of memory" in refused(weights).message


def test_time_is_limited(weights: Path, python: Python, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_child, "DEADLINE_SECONDS", 0.5)
    for script in (
        "time.sleep(60)",
        "os.close(0); os.write(1, b'tensor'); time.sleep(60)",
        "while True: os.write(1, b't'); time.sleep(0.01)",
    ):
        python(script)
        begin = time.monotonic()
        assert "0.5 s" in refused(weights).message
        assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    "script",
    [
        "",
        "sys.exit(3)",
        "os.kill(os.getpid(), 9)",
        "os.kill(os.getpid(), 11)",
        "os.write(1, b'end')",
        "os.write(1, b'\\xff\\x1b[2J\\n')",
        "os.write(1, b'tensor 77 uint8 0 1 1 000\\n')",
        "os.write(1, b'tensor 77 uint8 0 1 - 000\\nend\\n')",
        "os.write(1, b'tensor 77 uint8 -1 1 1 000\\nend\\n')",
        "os.write(1, b'tensor 77 uint8 0 999999999 1 000\\nend\\n')",
        "os.write(1, b'tensor 77 uint8 99999999999 1 1 000\\nend\\n')",
        "os.write(1, b'tensor 77 uint8 0 1 1 000\\n' * 2 + b'end\\n')",
        "os.write(1, b'tensor 7710 uint8 0 1 1 000\\nend\\n')",
        "os.write(1, b'tensor ff uint8 0 1 1 000\\nend\\n')",
        "os.write(1, b'corrupt 1b5b324a -\\n')",
        "os.write(1, b'corrupt ff -\\n')",
        "os.write(1, b'corrupt ' + b'41' * 5000 + b' -\\n')",
        "while True: os.write(1, b'x' * 65536)",
        "while True: os.write(1, b'tensor 77 uint8 0 1 1 000\\n' * 1000)",
    ],
)
def test_it_may_answer_anything(weights: Path, python: Python, script: str) -> None:
    python(script)
    refused(weights)


def test_what_it_cannot_read_is_said(weights: Path, python: Python) -> None:
    python("os.write(1, b'failed 5\\n')")
    with pytest.raises(CheckpointError, match="Input/output error"):
        open_checkpoint(weights)


def test_it_cannot_be_started(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "get_executable", lambda: str(weights.parent / "none"))
    with pytest.raises(CheckpointError, match="Cannot start") as caught:
        open_checkpoint(weights)
    assert caught.value.exit_code == 60


def test_without_an_interpreter_it_is_done_here(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawn, "get_executable", lambda: None)
    with open_checkpoint(weights) as checkpoint:
        assert list(checkpoint.tensors) == ["w"]
    torch.save({"w": 5}, weights)
    with pytest.raises(UnsafePickleError):
        open_checkpoint(weights)


def test_no_process_is_left(weights: Path, python: Python) -> None:
    errors = []
    for answer in ("end", "rubbish", "tensor 7710 uint8 0 1 1 000"):
        python(f"os.write(1, b'{answer}\\n'); time.sleep(600)")
        with pytest.raises(DeltastoreError) as caught:
            open_checkpoint(weights)
        errors.append(caught.value)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
