"""Writing checkpoints: bytes, visibility, space, and what is left after a failure."""

from __future__ import annotations

import errno
import itertools
import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from deltastore.checkpoint import (
    CheckpointWriter,
    ShardPlan,
    TensorSpec,
    check_destination,
    open_checkpoint,
    plan_shards,
)
from deltastore.errors import CheckpointError, NoSpaceError, OutputExistsError
from deltastore.system.directory import Directory

ONE = (ShardPlan("model.safetensors", (TensorSpec("a", "F32", (2, 3)),)),)
TWO = (
    ShardPlan("model-00001-of-00002.safetensors", (TensorSpec("b", "F32", (2, 3)),)),
    ShardPlan(
        "model-00002-of-00002.safetensors",
        (TensorSpec("c", "BF16", (5,)), TensorSpec("a", "I8", (0, 7))),
    ),
)
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def entries(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "home")


def test_a_single_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with CheckpointWriter(out, ONE) as writer:
        writer.write("a", 0, VALUES)
        assert not out.exists()
        writer.write_file("config.json", b"{}")
        writer.write_file("chat_templates/tool.jinja", b"x")
        writer.commit()
    assert entries(tmp_path) == ["out"]
    assert entries(out) == ["chat_templates", "config.json", "model.safetensors"]
    assert (out / "chat_templates" / "tool.jinja").read_bytes() == b"x"
    assert (load_file(out / "model.safetensors")["a"] == VALUES).all()
    with safe_open(out / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_nothing_could_read_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = (ShardPlan("model.safetensors", (TensorSpec("__metadata__", "F32", (2, 3)),)),)
    monkeypatch.setattr("deltastore.checkpoint.writer.MAX_INDEX_BYTES", 10)
    for plan, said in ((odd, "__metadata__"), (TWO, "a reader takes at most 10")):
        for attempt in (CheckpointWriter, check_destination):
            with pytest.raises(CheckpointError, match=said):
                attempt(tmp_path / "out", plan)
        assert entries(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["model.safetensors", "MODEL.safetensors", "model.safetensors/x", "../x", "/x", ""]
)
def test_small_files_in_the_way_of_weights(tmp_path: Path, name: str) -> None:
    with (
        CheckpointWriter(tmp_path / "out", ONE) as writer,
        pytest.raises(ValueError, match="small"),
    ):
        writer.write_file(name, b"")


def test_shards_and_their_index(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    bf16 = np.arange(5, dtype=np.float32).astype(ml_dtypes.bfloat16)
    with CheckpointWriter(str(out), TWO) as writer:
        writer.write("b", 0, VALUES)
        writer.write("c", 0, bf16)
        writer.write("a", 0, np.empty((0, 7), np.int8))
        writer.commit(fsync=True)
    assert json.loads((out / "model.safetensors.index.json").read_text()) == {
        "metadata": {"total_size": 34},
        "weight_map": {
            "a": "model-00002-of-00002.safetensors",
            "b": "model-00001-of-00002.safetensors",
            "c": "model-00002-of-00002.safetensors",
        },
    }
    with open_checkpoint(out) as checkpoint:
        assert checkpoint.shard_order() == ["b", "c", "a"]
        buffer = np.empty(5, ml_dtypes.bfloat16)
        checkpoint.read_into("c", 0, buffer)
        assert (buffer == bf16).all()
    with safe_open(out / TWO[1].filename, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_tensor("c").tolist() == [0, 1, 2, 3, 4]


@given(st.data())
@settings(deadline=None)
def test_pieces_in_any_order_make_the_tensor(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = data.draw(st.binary(min_size=1, max_size=200))
    cuts = sorted({0, len(content), *data.draw(st.lists(st.integers(0, len(content))))})
    pieces = data.draw(st.permutations(list(itertools.pairwise(cuts))))
    out = tmp_path_factory.mktemp("pieces") / "out"
    plan = (ShardPlan("model.safetensors", (TensorSpec("t", "U8", (len(content),)),)),)
    with CheckpointWriter(out, plan) as writer:
        for start, stop in pieces:
            writer.write("t", start, memoryview(content)[start:stop])
        writer.commit()
    assert load_file(out / "model.safetensors")["t"].tobytes() == content


def test_many_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {f"t{i}": rng.integers(0, 256, 100_000, dtype=np.uint8) for i in range(4)}
    plan = (
        ShardPlan(
            "model.safetensors", tuple(TensorSpec(n, "U8", v.shape) for n, v in values.items())
        ),
    )
    jobs = [(name, start) for name in values for start in range(0, 100_000, 1000)]
    with CheckpointWriter(tmp_path / "out", plan) as writer, ThreadPoolExecutor(8) as pool:

        def write(job: tuple[str, int]) -> None:
            name, start = job
            writer.write(name, start, values[name][start : start + 1000])

        list(pool.map(write, reversed(jobs)))
        writer.commit()
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert all((loaded[name] == value).all() for name, value in values.items())


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:7], at))
    with CheckpointWriter(tmp_path / "out", ONE) as writer:
        writer.write("a", 0, VALUES)
        writer.commit()
    monkeypatch.undo()
    assert (load_file(tmp_path / "out" / "model.safetensors")["a"] == VALUES).all()


def test_the_output_loads_in_transformers(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=32,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "base", max_shard_size="8KB")
    with open_checkpoint(tmp_path / "base") as base:
        assert len(base.shards) > 1
        outputs = {n: TensorSpec(n, t.dtype, t.shape) for n, t in base.tensors.items()}
        with CheckpointWriter(tmp_path / "out", plan_shards(base, outputs)) as writer:
            for name, tensor in base.tensors.items():
                buffer = np.empty(tensor.nbytes, np.uint8)
                base.read_into(name, 0, buffer)
                writer.write(name, 0, buffer)
            writer.write_file("config.json", base.files["config.json"].read_bytes())
            writer.commit()
        for shard in base.shards:
            # The same tensors at the same places, so that a file system may share the blocks.
            assert (tmp_path / "out" / shard.filename).read_bytes() == shard.path.read_bytes()
    loaded, report = LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    for name, value in model.state_dict().items():
        assert (loaded.state_dict()[name] == value).all()


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", TWO) as writer:
        with pytest.raises(ValueError, match="'b'"):
            writer.write("b", 1, VALUES)
        with pytest.raises(ValueError, match="'b'"):
            writer.write("b", -1, b"x")
        with pytest.raises(ValueError, match="contiguous"):
            writer.write("b", 0, VALUES.T)
        with pytest.raises(KeyError):
            writer.write("x", 0, b"")
        for path in (
            "../x", "/x", "", "a/../../x", ".lease", "model.safetensors.index.json",
            "model-00001-of-00002.safetensors", "./model-00001-of-00002.safetensors",
        ):  # fmt: skip
            with pytest.raises(ValueError, match="small file"):
                writer.write_file(path, b"")
        writer.write("b", 0, VALUES)
        with pytest.raises(ValueError, match=r"not written whole.*'c'"):
            writer.commit()
    assert entries(tmp_path) == []
    with pytest.raises(ValueError, match="closed"):
        writer.commit()
    writer.abort()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "new" / "er" / "out"

    def fail() -> None:
        with CheckpointWriter(out, ONE) as writer:
            assert len(list(out.parent.iterdir())) == 1
            writer.write("a", 0, VALUES)
            writer.write_file("sub/x", b"x")
            raise error

    with pytest.raises(error):
        fail()
    assert entries(tmp_path) == []
    with CheckpointWriter(out, ONE):
        pass
    assert entries(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "full", "link", "file_as_parent"])
def test_what_is_there_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    expected: type[CheckpointError] = OutputExistsError
    if kind == "file":
        out.write_text("x")
    elif kind == "full":
        (out / "x").mkdir(parents=True)
    elif kind == "link":
        (tmp_path / "target").mkdir()
        (tmp_path / "target" / "x").touch()
        out.symlink_to("target")
    else:
        (tmp_path / "file").touch()
        out, expected = tmp_path / "file" / "out", CheckpointError
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(expected) as caught:
        CheckpointWriter(out, ONE)
    assert str(tmp_path) in caught.value.message
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_directory_is_replaced_and_stays_private(tmp_path: Path) -> None:
    out = tmp_path / "target"
    out.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(out)
    with CheckpointWriter(tmp_path / "link", ONE) as writer:
        writer.write("a", 0, VALUES)
        writer.commit()
    assert entries(tmp_path) == ["link", "target"]
    assert (tmp_path / "link").is_symlink()
    assert (out / "model.safetensors").is_file()
    assert stat.S_IMODE(out.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["file", "full"])
def test_what_appears_meanwhile_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    with CheckpointWriter(out, ONE) as writer:
        writer.write("a", 0, VALUES)
        if kind == "file":
            out.write_text("mine")
        else:
            out.mkdir()
            (out / "mine").touch()
        with pytest.raises(OutputExistsError, match="appeared"):
            writer.commit()
    assert entries(tmp_path) == ["out"]
    assert out.is_file() or entries(out) == ["mine"]


def test_an_empty_directory_that_appears_is_no_obstacle(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", ONE) as writer:
        writer.write("a", 0, VALUES)
        (tmp_path / "out").mkdir()
        writer.commit()
    assert entries(tmp_path / "out") == ["model.safetensors"]


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o002, 0o664, 0o775), (0o027, 0o640, 0o750)]
)
def test_modes_follow_the_umask(tmp_path: Path, umask: int, file: int, folder: int) -> None:
    before = os.umask(umask)
    try:
        with CheckpointWriter(tmp_path / "new" / "out", TWO) as writer:
            writer.write("b", 0, VALUES)
            writer.write("c", 0, bytes(10))
            writer.write_file("sub/x", b"")
            writer.commit()
    finally:
        os.umask(before)
    for path in [tmp_path / "new", *(tmp_path / "new").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path


def test_space_is_checked_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    free = shutil.disk_usage(tmp_path)
    limit = 24 + 8 + 120 + 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=limit))
    out = tmp_path / "new" / "out"
    with pytest.raises(
        NoSpaceError, match=r"needs 2\.\d KiB at .*, where 1\.1 KiB are free"
    ) as caught:
        CheckpointWriter(out, ONE, files={"a": 2000})
    assert caught.value.facts["available_bytes"] == limit
    assert caught.value.facts["needed_bytes"] > 2024
    assert entries(tmp_path) == []
    CheckpointWriter(out, ONE, files={"a": 900}).abort()


def test_a_disk_that_fills_up_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with CheckpointWriter(tmp_path / "out", ONE) as writer:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(NoSpaceError, match="No space left"):
            writer.write("a", 0, VALUES)
        monkeypatch.setattr(Directory, "write", full)
        with pytest.raises(NoSpaceError, match=r"config\.json"):
            writer.write_file("config.json", b"")
    assert entries(tmp_path) == []


@pytest.mark.parametrize("limit", [10, 4000, 100_000])
def test_a_real_limit_of_the_file_size(tmp_path: Path, limit: int) -> None:
    code = f"""
import resource
from deltastore.checkpoint import CheckpointWriter, TensorSpec, ShardPlan
from deltastore.errors import NoSpaceError
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
plan = (ShardPlan("model.safetensors", (TensorSpec("t", "U8", (1 << 20,)),)),)
try:
    with CheckpointWriter({str(tmp_path / "out")!r}, plan) as writer:
        writer.write("t", 0, bytes(1 << 20))
        writer.commit()
except NoSpaceError as error:
    print(error.message, error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no file may be so large" in done.stdout
    assert "ulimit -f" in done.stdout
    assert entries(tmp_path) == []


def test_a_file_system_that_cannot_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltastore.checkpoint.destination._fallocate", lambda *_: False)
    with CheckpointWriter(tmp_path / "out", ONE) as writer:
        writer.write("a", 0, VALUES)
        writer.commit()
    assert (load_file(tmp_path / "out" / "model.safetensors")["a"] == VALUES).all()


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = opened()
    with CheckpointWriter(tmp_path / "a", TWO):
        assert opened() == before + 4  # two files, the directory and the one it is in
    with CheckpointWriter(tmp_path / "b", ONE) as writer:
        writer.write("a", 0, VALUES)
        writer.commit()
        assert opened() == before
    with pytest.raises(OutputExistsError):
        CheckpointWriter(tmp_path / "b", ONE)
    assert opened() == before


def test_a_directory_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        # As the system would, but for root too, whom permissions do not stop.
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("deltastore.checkpoint.output.create_partial", refuse)
    with pytest.raises(CheckpointError, match="Permission denied") as caught:
        CheckpointWriter(tmp_path / "out", ONE)
    assert "ls -ld" in caught.value.hint
