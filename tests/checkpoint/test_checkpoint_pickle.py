"""Old pickled weights, with torch as the oracle."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from deltastore.checkpoint import Checkpoint, open_checkpoint
from deltastore.errors import (
    CheckpointCorruptError,
    NoWeightsError,
    UnsafePickleError,
    UnsupportedDtypeError,
)

DTYPES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int64: "I64",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}


def content(checkpoint: Checkpoint, name: str, step: int = 1 << 20) -> bytes:
    tensor = checkpoint.tensors[name]
    result = bytearray(tensor.nbytes)
    for start in range(0, tensor.nbytes, step):
        checkpoint.read_into(name, start, memoryview(result)[start : start + step])
    return bytes(result)


def expected(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


# torch saves these dtypes in its legacy format too, and then cannot load them itself.
NEWER = {torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_all_dtypes(tmp_path: Path, legacy: bool, suffix: str) -> None:
    torch.manual_seed(0)
    state = {
        name: (torch.randn(3, 5) * 50).to(dtype)
        for dtype, name in DTYPES.items()
        if not (legacy and dtype in NEWER)
    } | {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
    }
    path = tmp_path / f"weights{suffix}"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    for source in (path, tmp_path):
        with open_checkpoint(source) as checkpoint:
            assert not checkpoint.is_safetensors
            assert checkpoint.shard_order() == list(state)
            assert list(checkpoint.tensors) == sorted(state)
            for name, tensor in state.items():
                info = checkpoint.tensors[name]
                assert info.dtype == ("F32" if name in ("scalar", "empty") else name)
                assert info.shape == tuple(tensor.shape)
                assert content(checkpoint, name) == expected(tensor), name


@pytest.mark.parametrize("legacy", [False, True])
def test_shared_and_strided_storage(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    state = {
        "embed": base,
        "head": base,
        "row": base[2],
        "transposed": base.t(),
        "columns": base[:, 1::3],
        "permuted": base.reshape(3, 4, 5).permute(2, 0, 1),
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "every_second": base.reshape(-1)[::2],
        "parameter": torch.nn.Parameter(base[3:]),
        "bf16": base.to(torch.bfloat16).t(),
        "conjugate": torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
    }
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    with open_checkpoint(tmp_path) as checkpoint:
        for name, tensor in state.items():
            want = expected(tensor.detach().resolve_conj())
            for step in (3, 7, 1 << 20):
                assert content(checkpoint, name, step) == want, name
        checkpoint.check_unchanged()
        assert checkpoint.shards[0].size == path.stat().st_size


def test_sharded_with_an_index(tmp_path: Path) -> None:
    import json

    weight_map = {}
    for i, name in enumerate("ab", 1):
        filename = f"pytorch_model-{i:05d}-of-00002.bin"
        torch.save({name: torch.full((2,), i)}, tmp_path / filename)
        weight_map[name] = filename
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b"]
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"weight_map": weight_map, "metadata": {"x": 1}}))
    for source in (tmp_path, path):
        with open_checkpoint(source) as checkpoint:
            assert list(checkpoint.tensors) == ["a", "b"]
            assert checkpoint.tensors["b"].shard == 1
            assert content(checkpoint, "b") == expected(torch.full((2,), 2))
    (tmp_path / weight_map["a"]).unlink()
    with pytest.raises(CheckpointCorruptError, match="1 are missing"):
        open_checkpoint(tmp_path)


def test_safetensors_win(tmp_path: Path, save: Any) -> None:
    torch.save({"old": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    save(tmp_path / "model.safetensors", "new")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["new"]
        assert checkpoint.ignored == ("pytorch_model.bin",)


def test_an_adapter_does_not_hide_a_pickled_model(tmp_path: Path, save: Any) -> None:
    torch.save({"old": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    save(tmp_path / "adapter_model.safetensors", "lora")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["old"]


def test_a_nested_state_dict(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(2)}, "epoch": 3}, tmp_path / "x.ckpt")
    with open_checkpoint(tmp_path / "x.ckpt") as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


def test_a_blob_without_suffix(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "0a1b")
    with open_checkpoint(tmp_path / "0a1b") as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


class Bomb:
    """What a hostile pickle would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, form: str) -> None:
    path, mark = tmp_path / "pytorch_model.bin", tmp_path / "mark"
    state = {"a": torch.zeros(1), "b": Bomb(mark)}
    if form == "plain":
        path.write_bytes(pickle.dumps({"b": Bomb(mark)}, protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UnsafePickleError, match="more than tensors") as caught:
        open_checkpoint(tmp_path)
    assert "mkdir" in caught.value.message
    assert not mark.exists()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_pickle_of_another_protocol(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps({"b": Bomb(mark)}, protocol=protocol))
    with pytest.raises(UnsafePickleError) as caught:
        open_checkpoint(tmp_path)
    assert "weights_only" not in caught.value.message
    assert not mark.exists()


def test_an_old_torchscript_archive(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/constants.pkl", b"\x80\x02N.")
        archive.writestr("model/data.pkl", b"\x80\x02N.")
        archive.writestr("model/version", b"3")
    with pytest.raises(UnsafePickleError, match="TorchScript"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "value",
    [[torch.zeros(1)], torch.zeros(1), {"a": torch.zeros(1), "n": 3}, {1: torch.zeros(1)}, None],
)
def test_other_things_than_named_tensors(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsafePickleError, match="expected"):
        open_checkpoint(tmp_path)


def test_an_empty_state_dict(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(NoWeightsError):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["sparse", "quantised", "meta", "complex128"])
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_without_plain_bytes(tmp_path: Path, kind: str) -> None:
    tensor = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "meta": lambda: torch.empty(3, device="meta"),
        "complex128": lambda: torch.zeros(2, dtype=torch.complex128),
    }[kind]()
    torch.save({"odd.weight": tensor}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedDtypeError, match=r"odd\.weight") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("keep", [0.01, 0.1, 0.5, 0.99])
def test_a_truncated_file(tmp_path: Path, legacy: bool, keep: float) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(5000)}, path, _use_new_zipfile_serialization=not legacy)
    os.truncate(path, int(path.stat().st_size * keep))
    with pytest.raises(CheckpointCorruptError, match=r"pytorch_model\.bin") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("data", [b"", b"version https://git-lfs", b"PK\x03\x04", b"\x80", b"{}"])
def test_a_file_of_something_else(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(CheckpointCorruptError, match=r"pytorch_model\.bin"):
        open_checkpoint(tmp_path)


def test_a_hostile_name(tmp_path: Path) -> None:
    torch.save({"a\nb": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointCorruptError, match="printable"):
        open_checkpoint(tmp_path)
