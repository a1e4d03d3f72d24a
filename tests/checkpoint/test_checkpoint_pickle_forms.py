"""Files as torch and trainers write them, in all their forms: the same as torch reads."""

from __future__ import annotations

import collections
import io
import pickle
import random
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from deltastore.checkpoint import open_checkpoint
from deltastore.checkpoint.pickle_file import PickleFile
from deltastore.errors import CheckpointCorruptError, UnsafePickleError, UnsupportedDtypeError


def raw(value: torch.Tensor) -> bytes:
    value = value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if value.numel() < 2:
        value = value.clone(memory_format=torch.contiguous_format)
    return bytes(value.view(torch.uint8).numpy())


def loaded(path: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = torch.load(path, weights_only=True, map_location="cpu")
    return content.get("state_dict", content)


def same(path: Path, want: dict[str, torch.Tensor] | None = None, step: int = 1 << 20) -> None:
    """What is read is what torch reads, in the same order."""
    want = loaded(path) if want is None else want
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.shard_order() == list(want)
        for name, value in want.items():
            info = checkpoint.tensors[name]
            assert info.shape == tuple(value.shape)
            found = bytearray(info.nbytes)
            for start in range(0, info.nbytes, step):
                checkpoint.read_into(name, start, memoryview(found)[start : start + step])
            assert found == raw(value), name


def view(draw: random.Random, base: torch.Tensor) -> torch.Tensor:
    shape = [draw.choice((0, 1, 1, 2, 3, 5, 8)) for _ in range(draw.randint(0, 4))]
    stride = [draw.choice((0, 1, 1, 2, 3, 7, 20, 64)) for _ in shape]
    reach = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True) if n)
    if reach > base.numel():
        return base[:3]
    return base.as_strided(shape, stride, draw.randint(0, base.numel() - reach))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_any_views(tmp_path: Path, seed: int, legacy: bool) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    dtypes = (torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.complex64)
    bases = [torch.randn(1500).mul(50).to(dtype) for dtype in dtypes]
    state = {f"w{i}": view(draw, draw.choice(bases)) for i in range(60)}
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    same(path, step=draw.choice((333, 1000, 1 << 20)))


@pytest.mark.parametrize("held", [0, 1 << 27], ids=["by runs", "held"])
@pytest.mark.parametrize("step", [100_003, 1 << 22])
def test_large_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, step: int) -> None:
    monkeypatch.setattr("deltastore.checkpoint.pickle_file._HELD_BYTES", held)
    base = torch.arange(3_000_000, dtype=torch.int32).reshape(300, 10_000)
    state = {
        "transposed": base.t(),
        "permuted": base.reshape(30, 100, 1000).permute(2, 0, 1),
        "columns": base[:, 3::1000],
        "sparse": base.reshape(-1)[::5000],
        "expanded": base[:2, None].expand(2, 30, 10_000),
        "one_row": base.as_strided((1, 900_000), (1, 3)),
    }
    torch.save(state, tmp_path / "pytorch_model.bin")
    same(tmp_path / "pytorch_model.bin", step=step)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(tmp_path: Path, protocol: int, legacy: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3))
    state = model.state_dict()
    assert state._metadata  # type: ignore[attr-defined]
    path = tmp_path / "pytorch_model.bin"
    torch.save(
        {"state_dict": state, "epoch": 1 << 40, "name": "ä" * 300, "raw": b"\0" * 300},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not legacy,
    )
    same(path, state)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_trainer(tmp_path: Path, legacy: bool) -> None:
    """What stands beside the state dict is no obstacle, as long as torch takes it for harmless."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    beside = {
        "epoch": 3,
        "loss": 0.25,
        "best": None,
        "done": True,
        "optimizer": optimizer.state_dict(),
        "counts": collections.Counter("abca"),
        "seen": {1, 2},
        "raw": b"bytes",
        "buffer": bytearray(b"bytes"),
        "number": 1 + 2j,
        "huge": 1 << 900,
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "sparse": torch.eye(3).to_sparse(),
        "rng": torch.get_rng_state(),
        (1, "a"): [("x", [2])],
        "state_dict": model.state_dict(),
    }
    path = tmp_path / "last.ckpt"
    torch.save(beside, path, _use_new_zipfile_serialization=not legacy)
    same(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_parameters_and_attributes(tmp_path: Path, legacy: bool) -> None:
    tied = torch.nn.Parameter(torch.randn(3, 3))
    marked = torch.nn.Parameter(torch.randn(2))
    marked.tensor_parallel = True  # type: ignore[attr-defined]
    plain = torch.randn(2)
    plain.note = "x"  # type: ignore[attr-defined]
    state = {
        "a": tied,
        "b": tied,
        "marked": marked,
        "plain": plain,
        "buffer": torch.nn.Buffer(torch.randn(2)),
        "imag": torch.randn(3, dtype=torch.complex64).conj().imag,
        "nan": torch.tensor([complex("nan+nanj")], dtype=torch.complex64).conj(),
    }
    assert state["imag"].is_neg()
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    same(path)


@pytest.mark.parametrize(
    "dtype", [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_what_torch_cannot_load_of_its_old_format(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"w": torch.arange(12).reshape(3, 4).to(dtype), "t": torch.ones(3)}
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    same(path, state)


def rebuilt(path: Path, change: Any, **options: Any) -> Path:
    """The zip file written again, each member as ``change`` makes it of name and bytes."""
    new = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(new, "w") as archive:
        for member in old.infolist():
            data = change(member.filename.partition("/")[2], old.read(member))
            if data is not None:
                archive.writestr(member.filename, data)
    path.write_bytes(new.getvalue())
    return path


def test_the_other_byte_order(tmp_path: Path) -> None:
    state = {"f": torch.randn(4, 3).t(), "h": torch.randn(5).half(), "b": torch.tensor([True])}
    state["c"] = torch.randn(3, dtype=torch.complex64)
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path)
    rebuilt(path, lambda name, data: b"big" if name == "byteorder" else data)
    same(path)
    # Files of torch before 2.0 do not say.
    rebuilt(path, lambda name, data: None if name[0] == "." or name == "byteorder" else data)
    same(path)
    rebuilt(path, lambda name, data: data)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("pytorch_model/byteorder", "middle")
    with pytest.raises(CheckpointCorruptError, match="byte order"):
        open_checkpoint(path)


def test_saved_on_another_device(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.randn(3)}, path)
    cpu, cuda = b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:1"
    rebuilt(path, lambda _, data: data.replace(cpu, cuda))
    assert cuda in path.read_bytes()
    same(path)


def test_sizes_of_64_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.randn(300), "v": torch.randn(2)}, path)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    rebuilt(path, lambda _, data: data)
    assert b"PK\x06\x06" in path.read_bytes()
    same(path)


def test_strings_of_python_2(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(collections.OrderedDict(weight=torch.randn(3)), path)
    rebuilt(path, lambda _, data: data.replace(b"X\6\0\0\0weight", b"U\6weight"))
    assert b"U\6weight" in path.read_bytes()
    same(path)


def test_a_view_of_a_storage_before_torch_0_4(tmp_path: Path) -> None:
    values = torch.arange(10, dtype=torch.float32)
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": values[:4]}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    whole = b"K\nNtq"
    assert data.count(whole) == 1
    path.write_bytes(data.replace(whole, b"K\n(X\1\0\0\0vK\3K\5ttq"))
    same(path, {"w": values[3:7]})
    assert torch.equal(loaded(path)["w"], values[3:7])


@pytest.mark.parametrize("legacy", [False, True])
def test_what_only_code_could_make(tmp_path: Path, legacy: bool) -> None:
    import argparse

    import numpy as np

    path = tmp_path / "last.ckpt"
    state = {"w": torch.ones(2)}
    for value in (argparse.Namespace(a=1), np.float64(1), np.ones(2), tmp_path):
        torch.save(
            {"state_dict": state, "args": value}, path, _use_new_zipfile_serialization=not legacy
        )
        with pytest.raises(UnsafePickleError, match="asks for"):
            open_checkpoint(path)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("legacy", [False, True])
def test_other_tensors_beside_the_state_dict(tmp_path: Path, legacy: bool) -> None:
    """They are no obstacle beside the state dict, and are refused within."""
    odd = torch.nn.Parameter(
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), requires_grad=False
    )
    path = tmp_path / "last.ckpt"
    options = {"_use_new_zipfile_serialization": not legacy}
    torch.save({"odd": odd, "state_dict": {"w": torch.ones(2)}}, path, **options)
    same(path)
    torch.save({"w": odd}, path, **options)
    with pytest.raises(UnsupportedDtypeError, match="quantised"):
        open_checkpoint(path)


def test_a_file_that_is_shortened_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.ones(500_000), "t": torch.ones(700, 700).t()}, path)
    with open_checkpoint(path) as checkpoint:
        with path.open("r+b") as file:
            file.truncate(5000)
        for name in checkpoint.tensors:
            with pytest.raises(CheckpointCorruptError, match="ends at byte"):
                checkpoint.read_into(name, 0, bytearray(checkpoint.tensors[name].nbytes))


def test_many_tensors(tmp_path: Path) -> None:
    """More than the first look at a file of pickles in a row takes in."""
    state = {f"model.layers.{i}.weight": torch.tensor([i]) for i in range(8_000)}
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.bin"
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        file = PickleFile(path, 0)
        found = bytearray(8)
        file.read_into(file.tensors[7_999], 0, memoryview(found))
        file.close()
        assert [tensor.name for tensor in file.tensors] == list(state)
        assert int.from_bytes(found, "little") == 7_999


def test_magic_alone(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2))
    with pytest.raises(CheckpointCorruptError, match="ends within"):
        open_checkpoint(path)
