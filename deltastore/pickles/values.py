"""What the pickle of a state dict is made of, as inert notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

MAX_DIMENSIONS = 64
"""Of a tensor, as torch has it; what deltastore stores is checked by who reads the notes."""

MAX_INTEGER = (1 << 63) - 1

DTYPES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "complex128": 16,
    "complex64": 8,
    "complex32": 4,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
    "qint8": 1,
    "quint8": 1,
    "qint32": 4,
    "quint4x2": 1,
    "quint2x4": 1,
    **{f"{sign}int{bits}": 1 for sign in ("", "u") for bits in range(1, 8)},
}
"""Bytes of an element by what torch calls the dtype."""

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8",
}
"""The dtype of each class of storages."""


class RefusedError(Exception):
    """A file is not read any further.

    Attributes:
        kind: ``corrupt``, ``unsafe`` (a pickle that does more than a state dict's), ``other`` (it
            makes something else than named tensors) or ``unsupported``.
        text: What to say after the file's path (of ``unsafe``: why); ASCII, short.
        tensor: The tensor concerned, if one is.
    """

    def __init__(self, kind: str, text: str, tensor: str = "") -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.tensor = tensor


class Name:
    """A global, which is only named."""

    __slots__ = ("full",)

    def __init__(self, full: str) -> None:
        self.full = full


class Pairs:
    """A dictionary: keys and values in turn, as nothing is hashed that a stranger made."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items: list[object] = []


class Other:
    """A value that is of no use here; ``tensor`` says what is wrong with it if it is a tensor."""

    __slots__ = ("called", "tensor")

    def __init__(self, called: str, tensor: str = "") -> None:
        self.called = called
        self.tensor = tensor


class Storage:
    """Elements in a row: ``begin`` is the position in the file, unknown (-1) at first.

    ``root`` is the storage of which this one is a part, ``skip`` the bytes of it before this one.
    """

    __slots__ = ("begin", "dtype", "elements", "key", "root", "skip")

    def __init__(
        self, key: str, dtype: str, elements: int, root: Storage | None = None, skip: int = 0
    ) -> None:
        self.key = key
        self.dtype = dtype
        self.elements = elements
        self.root = root
        self.skip = skip
        self.begin = -1

    @property
    def nbytes(self) -> int:
        """The bytes of all elements."""
        return self.elements * DTYPES[self.dtype]

    @property
    def position(self) -> int:
        """Where it begins in the file; -1 where the file does not hold it."""
        if self.root is None:
            return self.begin
        return -1 if self.root.begin < 0 else self.root.begin + self.skip


class Tensor:
    """A view of a storage; ``offset`` and ``stride`` in elements."""

    __slots__ = ("conjugate", "dtype", "negative", "offset", "shape", "storage", "stride")

    def __init__(
        self,
        storage: Storage,
        dtype: str,
        offset: int,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        marks: tuple[bool, bool],
    ) -> None:
        self.storage = storage
        self.dtype = dtype
        self.offset = offset
        self.shape = shape
        self.stride = stride
        self.conjugate, self.negative = marks


_CALLED: dict[type, str] = {Pairs: "dict", type(None): "None", int: "number", str: "string"}


def called(value: object) -> str:
    """The type of a value, for messages."""
    if isinstance(value, Other):
        return value.called
    if isinstance(value, Name):
        return "global"
    return _CALLED.get(type(value), type(value).__name__)


def corrupt(text: str) -> RefusedError:
    """The error for what no ``torch.save`` writes."""
    return RefusedError("corrupt", text)


# --- what a pickle may name -----------------------------------------------------------------------

Arguments = tuple[object, ...]


def find(module: str, name: str) -> Name:
    """A global that a state dict needs.

    Raises:
        RefusedError: It is none of them.
    """
    full = f"{_RENAMED.get(module, module)}.{name}"
    if full in _BUILDERS or full in _WORDS:
        return Name(full)
    raise RefusedError("unsafe", f"its pickle asks for {f'{module}.{name}'[:100]!a}")


def build(function: object, arguments: object) -> object:
    """What a global makes of arguments.

    Raises:
        RefusedError: It makes nothing, or not of these.
    """
    if not isinstance(function, Name) or function.full not in _BUILDERS:
        what = function.full if isinstance(function, Name) else called(function)
        raise RefusedError("unsafe", f"its pickle calls {what[:100]!a}")
    if not isinstance(arguments, tuple):
        raise corrupt(f"calls {function.full} with a {called(arguments)}; expected a tuple")
    return _BUILDERS[function.full](arguments)


def storage_type(value: object) -> str | None:
    """The dtype of a class of storages; none if it is something else."""
    if not isinstance(value, Name):
        return None
    module, _, name = value.full.rpartition(".")
    return STORAGES.get(name) if module in ("torch", "torch.cuda", "torch.storage") else None


def natural(value: object) -> int | None:
    """A count or position as it is; none if it is something else."""
    # type() rather than isinstance(): True is an integer to Python.
    return value if type(value) is int and 0 <= value <= MAX_INTEGER else None


def _naturals(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, tuple | list):
        raise corrupt(f"gives a tensor a {what} that is a {called(value)}; expected a tuple")
    if len(value) > MAX_DIMENSIONS:
        raise corrupt(f"gives a tensor {len(value)} dimensions; expected at most {MAX_DIMENSIONS}")
    found = [natural(item) for item in value]
    if None in found:
        raise corrupt(f"gives a tensor a {what} with something else than 0 to 2^63 - 1")
    return tuple(item for item in found if item is not None)


def _tensor(arguments: Arguments, dtype: str = "", marks: object = None) -> Tensor:
    if len(arguments) < 4:
        raise corrupt(f"makes a tensor of {len(arguments)} values; expected at least 4")
    storage, offset = arguments[0], natural(arguments[1])
    if not isinstance(storage, Storage):
        raise corrupt(f"makes a tensor of a {called(storage)}; expected a storage of the file")
    if offset is None:
        raise corrupt("begins a tensor at something else than 0 to 2^63 - 1")
    shape, stride = _naturals(arguments[2], "shape"), _naturals(arguments[3], "stride")
    if len(shape) != len(stride):
        raise corrupt(f"gives a tensor {len(shape)} sizes and {len(stride)} strides")
    found = {}
    if marks is not None:
        if not isinstance(marks, Pairs):
            raise corrupt(f"marks a tensor by a {called(marks)}; expected a dict")
        for key, value in zip(marks.items[:16:2], marks.items[1:16:2], strict=True):
            if type(key) is not str or key not in ("conj", "neg") or type(value) is not bool:
                raise corrupt("marks a tensor as something else than conj or neg")
            found[key] = value
    both = found.get("conj", False), found.get("neg", False)
    tensor = Tensor(storage, dtype or storage.dtype, offset, shape, stride, both)
    if 0 not in shape:
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if (last + 1) * DTYPES[tensor.dtype] > storage.nbytes:
            raise corrupt(
                f"has a tensor that ends at element {min(last, MAX_INTEGER)} of a storage of "
                f"{storage.nbytes // DTYPES[tensor.dtype]}"
            )
    return tensor


def _typed(arguments: Arguments) -> Tensor:
    return _tensor(arguments, marks=arguments[6] if len(arguments) > 6 else None)


def _untyped(arguments: Arguments) -> Tensor:
    dtype = _dtype(arguments[6]) if len(arguments) > 6 else None
    if dtype is None:
        raise corrupt("makes a tensor without a dtype")
    return _tensor(arguments, dtype, arguments[7] if len(arguments) > 7 else None)


def _dtype(value: object) -> str | None:
    name = value.full.removeprefix("torch.") if isinstance(value, Name) else ""
    return name if name in DTYPES else None


def _first(arguments: Arguments) -> object:
    """A parameter is the tensor in it."""
    value = arguments[0] if arguments else None
    if isinstance(value, Tensor) or (isinstance(value, Other) and value.tensor):
        return value
    raise corrupt(f"makes a parameter of a {called(value)}; expected a tensor")


def _of_type(arguments: Arguments) -> object:
    """A tensor with attributes, which nothing here looks at."""
    if len(arguments) != 4 or not isinstance(arguments[2], tuple):
        raise corrupt("makes a tensor of a type without its four values")
    function, kind = arguments[0], arguments[1]
    if not isinstance(kind, Name) or kind.full not in ("torch.Tensor", _PARAMETER):
        raise RefusedError("unsafe", f"its pickle makes a tensor of the type {called(kind)!a}")
    # Of plain tensors alone: a type of a type of … would be walked.
    if not isinstance(function, Name) or function.full not in _TENSORS:
        raise RefusedError("unsafe", "its pickle makes a tensor by something else than torch does")
    return _TENSORS[function.full](arguments[2])


def _moved(arguments: Arguments) -> object:
    """A tensor of a device that torch saves by way of the processor."""
    value = arguments[0] if len(arguments) > 1 else None
    if isinstance(value, Tensor) and _dtype(arguments[1]) == value.dtype:
        return value
    return Other("Tensor", "of a device of its own")


def _ordered(arguments: Arguments) -> Pairs:
    """An OrderedDict: empty, or of a list of pairs as Python 2 writes it."""
    result = Pairs()
    for pair in _listed(arguments):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise corrupt("makes an OrderedDict of something else than pairs")
        result.items += pair
    return result


def _listed(arguments: Arguments) -> list[object]:
    if not arguments:
        return []
    if len(arguments) == 1 and isinstance(arguments[0], list):
        return arguments[0]
    raise corrupt("makes an OrderedDict of something else than pairs")


def _size(arguments: Arguments) -> object:
    return _naturals(arguments[0] if arguments else (), "size")


def _other(name: str, tensor: str = "") -> Callable[[Arguments], object]:
    return lambda _: Other(name, tensor)


_PARAMETER = "torch.nn.parameter.Parameter"

_TENSORS: Mapping[str, Callable[[Arguments], object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _typed,
    "torch._utils._rebuild_tensor_v3": _untyped,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _moved,
    "torch._utils._rebuild_qtensor": _other("Tensor", "quantised"),
    "torch._utils._rebuild_sparse_tensor": _other("Tensor", "sparse or nested"),
    "torch._utils._rebuild_nested_tensor": _other("Tensor", "sparse or nested"),
    "torch._utils._rebuild_meta_tensor_no_storage": _other(
        "Tensor", "on the device 'meta' (without data)"
    ),
    "torch._utils._rebuild_wrapper_subclass": _other("Tensor", "of a class without data"),
}

_BUILDERS: Mapping[str, Callable[[Arguments], object]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.Size": _size,
    "collections.OrderedDict": _ordered,
    # What stands beside the state dict in a trainer's file.
    "collections.Counter": _other("Counter"),
    "builtins.set": _other("set"),
    "builtins.bytes": _other("bytes"),
    "builtins.bytearray": _other("bytearray"),
    "builtins.complex": _other("complex"),
    "_codecs.encode": _other("bytes"),
    "torch.device": _other("device"),
    "torch.serialization._get_layout": _other("layout"),
}

_WORDS = {
    "torch.Tensor",
    _PARAMETER,
    *(f"torch.{name}" for name in DTYPES),
    *(f"{module}.{name}" for module in ("torch", "torch.cuda") for name in STORAGES),
    "torch.storage.UntypedStorage",
    "torch.per_tensor_affine",
    "torch.per_tensor_symmetric",
    "torch.per_channel_affine",
    "torch.per_channel_symmetric",
    "torch.per_channel_affine_float_qparams",
}

# Pickles of protocol 2 have the names of Python 2.
_RENAMED = {"__builtin__": "builtins"}
