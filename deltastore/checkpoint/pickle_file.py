"""One old ``.bin``/``.pt``/``.pth`` file. The only module that imports torch, when it must."""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltastore.checkpoint.files import identify, open_regular, read_at
from deltastore.checkpoint.header import check_name, check_shape, unsupported_dtype
from deltastore.checkpoint.model import TORCH_DTYPES, TensorInfo
from deltastore.errors import CheckpointCorruptError, UnsafePickleError, UnsupportedDtypeError
from deltastore.manifest.format import DTYPE_BYTES

if TYPE_CHECKING:
    import torch

_ZIP = b"PK\x03\x04"
_CONVERT = "Convert it where you trust its source: load it in torch and save it as safetensors."


class PickleFile:
    """A file of ``torch.save``: memory-mapped where its format allows, else held in memory."""

    def __init__(self, path: Path, shard: int) -> None:
        """Load the file, without running anything in it.

        Raises:
            CheckpointCorruptError: The file is missing, truncated or no file of ``torch.save``.
            UnsafePickleError: It holds more than tensors.
            UnsupportedDtypeError: A tensor is sparse or quantised, or its dtype not supported.
            CheckpointError: The file cannot be opened or read.
        """
        self.path = path
        self.metadata: dict[str, str] = {}
        self.descriptor = open_regular(path)
        try:
            self.identity = identify(self.descriptor, path)
            self._values = {
                name: _plain(name, value, path)
                for name, value in _named(_load(self.descriptor, path), path)
            }
            self.tensors = [_info(name, value, shard, path) for name, value in self._values.items()]
            _check_sizes(self.tensors, self.identity.size, path)
        except BaseException:
            os.close(self.descriptor)
            raise

    def read_into(self, tensor: TensorInfo, start_byte: int, view: memoryview) -> None:
        """Fill ``view`` from the tensor's bytes in row-major order."""
        import numpy as np

        length = len(view)
        if not length:
            return
        target = np.frombuffer(view, dtype=np.uint8)
        value = self._values[tensor.name]
        if not value.is_contiguous():
            # Only the rows that are asked for are made contiguous: memory stays at a chunk.
            row_bytes = tensor.nbytes // tensor.shape[0]
            first = start_byte // row_bytes
            value = value[first : -(-(start_byte + length) // row_bytes)].contiguous()
            start_byte -= first * row_bytes
        np.copyto(target, _bytes(value)[start_byte : start_byte + length])

    def close(self) -> None:
        """Release the tensors and the descriptor."""
        self._values = {}
        os.close(self.descriptor)


def _load(descriptor: int, path: Path) -> Any:
    magic = bytearray(min(4, os.fstat(descriptor).st_size))
    read_at(descriptor, 0, memoryview(magic), path)
    # Pickles of protocol 2 and later start with 0x80; anything else would only confuse torch.
    if magic != _ZIP and not magic.startswith(b"\x80"):
        raise CheckpointCorruptError(
            f"{path} starts with {bytes(magic)!r}; expected a file written by torch.save.",
            hint="If it is a Git LFS pointer, run `git lfs pull`; else fetch the file again.",
            path=str(path),
        )
    if magic == _ZIP:
        _refuse_compressed(path)
    import torch

    try:
        with warnings.catch_warnings():
            # Advice to whoever wrote the file, not to its reader.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=magic == _ZIP)
    except Exception as error:
        # torch reports damage by many types (RuntimeError, EOFError, KeyError, ...), and by the
        # same UnpicklingError as an unsafe pickle where a legacy file ends within its pickle.
        unsafe = isinstance(error, pickle.UnpicklingError) or "TorchScript" in str(error)
        if unsafe and not _ends_within_pickle(path):
            raise UnsafePickleError(
                f"{path} holds more than tensors and was not loaded: {_reason(str(error))}.",
                hint=_CONVERT,
                path=str(path),
            ) from error
        raise CheckpointCorruptError(
            f"{path} cannot be loaded by torch: {_reason(str(error) or type(error).__name__)}.",
            hint="The file is damaged or was not fetched whole; fetch the checkpoint again.",
            path=str(path),
        ) from error


def _refuse_compressed(path: Path) -> None:
    """Refuse a zip file that could grow: torch.save stores, and torch.load would inflate."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise CheckpointCorruptError(
            f"{path} is no zip file that can be read: {_reason(str(error)) or 'it is damaged'}.",
            hint="The file is damaged or was not fetched whole; fetch the checkpoint again.",
            path=str(path),
        ) from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointCorruptError(
            f"{path} is a zip file with compressed members; torch.save stores them as they are.",
            hint=_CONVERT,
            path=str(path),
        )


def _check_sizes(tensors: list[TensorInfo], size: int, path: Path) -> None:
    """Refuse tensors that repeat a few stored elements to more than the file could hold."""
    for tensor in tensors:
        if tensor.nbytes > size:
            raise CheckpointCorruptError(
                f"{path} gives {tensor.name!r} {tensor.nbytes} bytes; the whole file has {size}.",
                hint="If it was saved as an expanded view, save it again after .contiguous().",
                path=str(path),
                tensor=tensor.name,
            )


def _ends_within_pickle(path: Path) -> bool:
    # A legacy file is five pickles, then the tensors' bytes. Decoding them runs nothing.
    with path.open("rb") as file:
        if file.peek(4)[:4] == _ZIP:
            return False
        for _ in range(5):
            if not file.peek(1):
                return False
            try:
                for _ in pickletools.genops(file):
                    pass
            except Exception:  # noqa: BLE001 - whatever it stumbles over, the pickle is not whole
                return True
    return False


def _reason(text: str) -> str:
    # Most of torch's text is advice to switch its protection off, which must not be passed on.
    wanted = re.search(r"GLOBAL (\S*[^\s.])", text)
    if wanted:
        return f"its pickle asks for {wanted[1][:100]!a}"
    if "Weights only load failed" in text:
        found = re.search(r"Unsupported \w+ [^\n]{1,80}", text)
        return f"torch says {found[0].rstrip('.')!a}" if found else "torch refuses its pickle"
    return text.strip().splitlines()[0][:200].rstrip(".: ")


def _named(content: Any, path: Path) -> list[tuple[str, torch.Tensor]]:
    import torch

    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise UnsafePickleError(
            f"{path} holds a {type(content).__name__}; expected a mapping of names to tensors.",
            hint="Save the model's state_dict() instead.",
            path=str(path),
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UnsafePickleError(
                f"{path} holds a {type(value).__name__} under {name!a}; "
                "expected names with tensors only.",
                hint="Save the model's state_dict() alone, without optimizer or trainer state.",
                path=str(path),
            )
        check_name(name, path)
    return list(content.items())


def _plain(name: str, value: torch.Tensor, path: Path) -> torch.Tensor:
    import torch

    kind = ""
    if value.is_quantized:
        kind = "quantised"
    elif value.layout != torch.strided or value.is_nested:
        kind = "sparse or nested"
    elif value.device.type != "cpu":
        kind = f"on the device {value.device.type!r} (without data)"
    if kind:
        raise UnsupportedDtypeError(
            f"{path} stores {name!r} as a tensor that is {kind}; expected a dense one.",
            hint="Call .dequantize() or .to_dense() on it, and save the checkpoint again.",
            path=str(path),
            tensor=name,
        )
    return value.detach().resolve_conj().resolve_neg()


def _info(name: str, value: torch.Tensor, shard: int, path: Path) -> TensorInfo:
    torch_name = str(value.dtype).removeprefix("torch.")
    dtype = TORCH_DTYPES.get(torch_name)
    if dtype is None:
        raise unsupported_dtype(torch_name, name, path)
    shape = tuple(value.shape)
    check_shape(shape, name, path)
    return TensorInfo(name, dtype, shape, shard, 0, value.numel() * DTYPE_BYTES[dtype])


def _bytes(value: torch.Tensor) -> Any:
    import torch

    flat = value.reshape(-1)
    if flat.numel() == 1:
        # One element counts as contiguous whatever its stride, but cannot be viewed as bytes.
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy()
