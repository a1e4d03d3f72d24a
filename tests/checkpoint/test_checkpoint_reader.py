"""An open checkpoint: what it reports, reads from many threads, files that change under it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from deltastore.checkpoint import open_checkpoint
from deltastore.errors import CheckpointCorruptError, CheckpointError, SourceChangedError


def test_what_a_checkpoint_reports(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        assert checkpoint.path == sharded
        assert (checkpoint.repo, checkpoint.revision) == (None, None)
        assert list(checkpoint.tensors) == ["a", "b", "c", "d", "e"]
        assert checkpoint.shard_order() == ["a", "b", "c", "d", "e"]
        assert [shard.filename for shard in checkpoint.shards] == [
            f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)
        ]
        assert checkpoint.shards[1].path == sharded / "model-00002-of-00003.safetensors"
        assert checkpoint.shards[1].metadata == {"format": "pt"}
        assert checkpoint.tensors["d"].shard == 2
        assert checkpoint.tensors["d"].dtype == "F32"
        assert checkpoint.tensors["d"].shape == (2, 3)
        assert checkpoint.tensors["d"].elements == 6
        assert checkpoint.nbytes == 5 * 24
        assert checkpoint.parameters == 30
        assert checkpoint.is_safetensors
        assert checkpoint.config == {"model_type": "llama"}
        assert checkpoint.ignored == ()


def test_offsets_are_absolute(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        tensor = checkpoint.tensors["e"]
        data = checkpoint.shards[tensor.shard].path.read_bytes()
    expected = np.full((2, 3), 1, np.float32).tobytes()
    assert data[tensor.offset : tensor.offset + tensor.nbytes] == expected


def test_reading_from_many_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": rng.integers(0, 1 << 16, 5000, dtype=np.uint16) for i in range(8)}
    save_file(arrays, tmp_path / "model.safetensors")

    def check(seed: int) -> None:
        choose = np.random.default_rng(seed)
        for _ in range(50):
            name = f"t{choose.integers(8)}"
            start, stop = sorted(choose.integers(0, 10_000, 2))
            buffer = np.empty(stop - start, np.uint8)
            checkpoint.read_into(name, int(start), buffer)
            assert buffer.tobytes() == arrays[name].tobytes()[start:stop]

    with open_checkpoint(tmp_path) as checkpoint, ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(16)))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_buffers_of_any_dtype_are_filled(tmp_path: Path, save: Any, dtype: Any) -> None:
    values = np.arange(12, dtype=np.float32).astype(dtype)
    save(tmp_path / "m.safetensors", a=values.view(np.uint8))
    with open_checkpoint(tmp_path) as checkpoint:
        buffer = np.empty((3, 4), dtype)
        checkpoint.read_into("a", 0, buffer)
        assert (buffer.reshape(-1) == values).all()
        scalar = np.empty((), np.uint8)
        checkpoint.read_into("a", 3, scalar)
        assert scalar == values.view(np.uint8)[3]


def test_wrong_ranges_and_buffers_are_refused(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        with pytest.raises(ValueError, match="'a'"):
            checkpoint.read_into("a", 1, bytearray(24))
        with pytest.raises(ValueError, match="'a'"):
            checkpoint.read_into("a", -1, bytearray(2))
        with pytest.raises(ValueError, match="contiguous"):
            checkpoint.read_into("a", 0, np.empty((4, 4), np.uint8)[:, ::2])
        with pytest.raises(ValueError, match="contiguous"):
            checkpoint.read_into("a", 0, memoryview(bytearray(8))[::2])
        with pytest.raises(KeyError):
            checkpoint.read_into("nope", 0, bytearray(1))
    with pytest.raises(ValueError, match="closed"):
        checkpoint.read_into("a", 0, bytearray(1))
    checkpoint.close()


def test_a_short_read_is_continued(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv
    with open_checkpoint(sharded) as checkpoint:
        expected = bytearray(24)
        checkpoint.read_into("b", 0, expected)
        monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:5]], at))
        buffer = bytearray(24)
        checkpoint.read_into("b", 0, buffer)
    assert buffer == expected


def test_a_file_shortened_after_opening_is_corrupt(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        os.truncate(checkpoint.shards[2].path, checkpoint.tensors["e"].offset + 5)
        with pytest.raises(CheckpointCorruptError, match="expected 19 bytes more"):
            checkpoint.read_into("e", 0, bytearray(24))


def test_a_failing_device_is_reported(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with open_checkpoint(sharded) as checkpoint:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(CheckpointError, match=r"Cannot read .*Input/output error"):
            checkpoint.read_into("e", 0, bytearray(24))


def test_a_touched_file_is_noticed_through_a_link(sharded: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(sharded)
    with open_checkpoint(link) as checkpoint:
        checkpoint.check_unchanged()
        os.utime(checkpoint.shards[0].path, ns=(1, 1))
        with pytest.raises(SourceChangedError, match="mtime_ns") as caught:
            checkpoint.check_unchanged()
        assert caught.value.facts["path"].endswith("00001-of-00003.safetensors")


def test_a_grown_and_a_replaced_file_are_noticed(sharded: Path, save: Any) -> None:
    with open_checkpoint(sharded) as checkpoint:
        with checkpoint.shards[1].path.open("ab") as file:
            file.write(b"x")
        with pytest.raises(SourceChangedError, match="size"):
            checkpoint.check_unchanged()
    save(sharded / "model-00002-of-00003.safetensors", "c")
    with open_checkpoint(sharded) as checkpoint:
        save(sharded / "new", "c").replace(checkpoint.shards[1].path)
        with pytest.raises(SourceChangedError, match="another file is in its place"):
            checkpoint.check_unchanged()


def test_a_link_a_mode_and_a_removal_change_no_byte(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        path = checkpoint.shards[1].path
        before = path.stat().st_ctime_ns
        for change in (
            lambda: os.link(path, sharded / "backup"),
            lambda: path.chmod(0o640),
            lambda: (sharded / "backup").unlink(),
            path.unlink,
        ):
            time.sleep(0.01)
            change()
            checkpoint.check_unchanged()
            assert not path.exists() or path.stat().st_ctime_ns != before


def test_no_descriptor_is_left_open(sharded: Path, raw: Any) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = opened()
    with open_checkpoint(sharded) as checkpoint:
        assert opened() == before + 3
    assert checkpoint.tensors
    assert opened() == before
    (sharded / "model-00003-of-00003.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointCorruptError):
        open_checkpoint(sharded)
    (sharded / "config.json").write_text("[")
    with pytest.raises(CheckpointCorruptError):
        open_checkpoint(sharded)
    assert opened() == before


def test_too_many_open_files_come_with_the_way_out(sharded: Path) -> None:
    code = f"""
import os, resource
from deltastore.checkpoint import open_checkpoint
from deltastore.errors import LimitError
used = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, used + 1))
try:
    open_checkpoint({str(sharded)!r})
except LimitError as error:
    assert "ulimit -n" in error.hint, error.hint
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"


def test_nothing_heavy_is_imported_for_safetensors(sharded: Path) -> None:
    code = f"""
import sys
import deltastore.checkpoint as c
heavy = ["torch", "numpy", "safetensors", "huggingface_hub", "transformers"]
print([m for m in heavy if m in sys.modules])
with c.open_checkpoint({str(sharded)!r}) as checkpoint:
    checkpoint.read_into("a", 0, bytearray(24))
    c.quantisation(checkpoint)
    plan = c.plan_shards(checkpoint, {{"a": c.TensorSpec("a", "F32", (2, 3))}})
with c.CheckpointWriter({str(sharded.parent / "out")!r}, plan) as writer:
    writer.write("a", 0, bytes(24))
    writer.commit()
print([m for m in heavy if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"


@pytest.mark.parametrize(
    ("config", "message"),
    [("{", "no valid JSON"), ("[1]", "expected an object"), ("\x00", "no valid JSON")],
)
def test_a_malformed_config_is_named(sharded: Path, config: str, message: str) -> None:
    (sharded / "config.json").write_text(config)
    with pytest.raises(CheckpointCorruptError, match=f"config.json.*{message}"):
        open_checkpoint(sharded)


def test_a_huge_config_is_not_read(sharded: Path) -> None:
    os.truncate(sharded / "config.json", (16 << 20) + 1)
    with pytest.raises(
        CheckpointCorruptError, match=r"config.json has \d+ bytes; expected at most"
    ):
        open_checkpoint(sharded)
