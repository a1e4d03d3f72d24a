"""Hostile files of ``torch.save``, opcode by opcode: see also hostile_checkpoints.py."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

from attack import Action, Make, attack
from hostile_checkpoints import read

GOOD = {"0": b"\0" * 4}
MANY = 1 << 23


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def found(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def many(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def storage(key: str = "0", elements: int = 2, kind: str = "BFloat16Storage") -> bytes:
    values = text("storage"), found("torch", kind), text(key), text("cpu"), number(elements)
    return many(*values) + b"Q"


def tensor(
    stored: bytes | None = None,
    shape: tuple[int, ...] = (2,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
) -> bytes:
    hooks = found("collections", "OrderedDict") + b")R"
    sizes = many(*map(number, shape)), many(*map(number, stride))
    values = stored or storage(), number(offset), *sizes, b"\x89", hooks
    return found("torch._utils", "_rebuild_tensor_v2") + many(*values) + b"R"


def state(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"}" + b"".join(key + value + b"s" for key, value in pairs)


def only(value: bytes, name: str = "w") -> bytes:
    return state((text(name), value))


def zipped(pickled: bytes, members: dict[str, bytes] = GOOD, *, whole: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        pickled = pickled if whole else b"\x80\x02" + pickled + b"."
        archive.writestr("archive/data.pkl", pickled)
        for key, data in members.items():
            archive.writestr(f"archive/data/{key}", data)
    return buffer.getvalue()


def in_a_row(pickled: bytes, keys: list[str], data: bytes) -> bytes:
    first = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    before = b"".join(pickle.dumps(value, 2) for value in first)
    return before + b"\x80\x02" + pickled + b"." + pickle.dumps(keys, 2) + data


def file(data: bytes) -> Make:
    def make(place: Path) -> Action:
        (place / "base").mkdir()
        (place / "base" / "pytorch_model.bin").write_bytes(data)
        return read(place)

    return make


# --- work, for few bytes --------------------------------------------------------------------------

_DOUBLED = b")" + b"q\x00h\x00\x86" * 60

attack("pickle-hash-bomb")(file(zipped(b"}" + _DOUBLED + b"Ns")))
attack("pickle-bytearray-value")(
    file(zipped(only(found("builtins", "bytearray") + many(number(5_000_000_000)) + b"R")))
)
attack("pickle-encode-punycode")(
    file(
        zipped(only(found("_codecs", "encode") + many(text("中" * 9999), text("punycode")) + b"R"))
    )
)
attack("pickle-nested-values")(file(zipped(only(b"]" + b"\x85" * 200_000))))
attack("pickle-nested-key")(file(zipped(b"})" + b"\x85" * 200_000 + b"Ns")))
attack("pickle-nested-marks")(file(zipped(b"}" + b"(" * 200_000)))
attack("pickle-nested-types")(
    file(
        zipped(
            only(
                (found("torch._tensor", "_rebuild_from_type_v2") + b"q\x01")
                + many(b"h\x01", found("torch", "Tensor"), b")", b"}")
                + b"R"
            )
        )
    )
)
attack("pickle-cycle")(file(zipped(b"}q\x00" + text("state_dict") + b"h\x00s")))
attack("pickle-opcodes")(file(zipped(b"N0" * MANY)))
attack("pickle-memo")(
    file(zipped(only(b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(1_000_000)))))
)
attack("pickle-lists")(file(zipped(b"]" * MANY)))
attack("pickle-long")(file(zipped(only(b"\x8b" + struct.pack("<I", 1 << 27) + bytes(1 << 27)))))
attack("pickle-string-claimed")(file(zipped(only(b"X\xff\xff\xff\x7fabc"))))
attack("pickle-string-claimed-64")(file(zipped(only(b"\x8d" + b"\xff" * 8))))
attack("pickle-pickles")(file(pickle.dumps(1, 2) * 1000))
attack("pickle-row-of-magic")(
    file(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) * 1000)
)
attack("pickle-repeated")(
    file(
        zipped(
            state(
                (text("a"), tensor(storage("0", 20_000), (20_000,)) + b"q\x01"),
                *((text(f"w{i}"), b"h\x01") for i in range(70)),
            ),
            {"0": bytes(40_000)},
        )
    )
)

# --- calls, by other ways -------------------------------------------------------------------------

attack("pickle-call-of-a-tensor")(file(zipped(only(tensor() + b")R"))))
attack("pickle-state-of-a-tensor")(file(zipped(only(tensor() + many(storage()) + b"b"))))
attack("pickle-state-of-a-list")(file(zipped(only(b"]}b"))))
attack("pickle-items-of-a-tensor")(file(zipped(only(tensor() + text("x") + b"Ns"))))
attack("pickle-new-object")(
    file(zipped(only(found("torch.nn.parameter", "Parameter") + b"(" + tensor() + b"t\x81")))
)
attack("pickle-inst")(file(zipped(only(b"(" + text("true") + b"ios\nsystem\n"))))
attack("pickle-obj")(file(zipped(only(b"(" + found("torch", "Size") + b"o"))))
attack("pickle-extension")(file(zipped(only(b"\x82\x01"))))
attack("pickle-lookalike")(
    # The first letter is Cyrillic; names are not normalised.
    file(zipped(only(text("сollections") + text("OrderedDict") + b"\x93)R")))
)
attack("pickle-stack-global")(file(zipped(only(text("os") + text("system") + b"\x93)R"))))
attack("pickle-global-dotted")(file(zipped(only(found("torch", "Size.__class__") + b")R"))))
attack("pickle-global-endless")(file(zipped(only(b"c" + b"a" * 100_000 + b"\n"))))
attack("pickle-persistent-module")(
    file(zipped(only(many(text("module"), found("torch", "Tensor"), b"N", b"N") + b"Q")))
)
attack("pickle-persistent-text")(file(zipped(only(b"P0\n"))))
attack("pickle-out-of-band")(file(zipped(only(b"\x97"))))
attack("pickle-bytearray8")(file(zipped(only(b"\x96" + struct.pack("<Q", 1 << 40)))))

# --- attributes, which nothing looks at -----------------------------------------------------------

_ORDERED = found("collections", "OrderedDict") + b")R"
_ITEM = text("w") + tensor() + b"s"

for _name in ("items", "get", "_metadata"):
    attack(f"pickle-attribute-{_name.strip('_')}")(
        file(zipped(_ORDERED + _ITEM + state((text(_name), number(5))) + b"b"))
    )
attack("pickle-attribute-of-a-tensor")(
    file(
        zipped(
            only(
                found("torch._tensor", "_rebuild_from_type_v2")
                + many(
                    found("torch._utils", "_rebuild_tensor_v2"),
                    found("torch", "Tensor"),
                    many(storage(), number(0), many(number(2)), many(number(1)), b"\x89", b"}"),
                    state((text("detach"), number(5))),
                )
                + b"R"
            )
        )
    )
)

# --- names and values -----------------------------------------------------------------------------

attack("pickle-key-long")(file(zipped(only(tensor(), "\\" * 6_000_000))))
attack("pickle-key-tuple")(file(zipped(b"}(" + b"K\x01" * 1_000_000 + b"t" + tensor() + b"s")))
attack("pickle-key-twice")(file(zipped(state((text("w"), tensor()), (text("w"), tensor())))))
attack("pickle-key-alone")(file(zipped(b"}(" + text("w") + b"u")))
attack("pickle-two-values")(file(zipped(only(tensor()) + only(tensor()))))
attack("pickle-stack-empty")(file(zipped(b"s")))
attack("pickle-memo-empty")(file(zipped(b"h\x07")))
attack("pickle-string-not-utf8")(file(zipped(b"X\x01\0\0\0\xff")))

# --- tensors of something else than the file's bytes ----------------------------------------------

attack("pickle-uninitialised")(
    file(zipped(only(found("torch", "BFloat16Tensor") + many(number(2)) + b"R")))
)
attack("pickle-beyond-storage")(
    file(zipped(only(tensor(shape=(4000,))), GOOD | {"1": bytes(9999)}))
)
attack("pickle-beyond-storage-by-stride")(
    file(zipped(only(tensor(shape=(2, 2), stride=(1 << 62, 1 << 62)))))
)
attack("pickle-offset-huge")(file(zipped(only(tensor(offset=(1 << 63) - 1)))))
attack("pickle-offset-negative")(file(zipped(only(tensor(offset=-1)))))
attack("pickle-stride-negative")(file(zipped(only(tensor(stride=(-1,), offset=1)))))
attack("pickle-shape-negative")(file(zipped(only(tensor(shape=(-2,))))))
attack("pickle-shape-overflow")(file(zipped(only(tensor(shape=(1 << 40, 1 << 40), stride=(0, 0))))))
attack("pickle-shape-true")(
    file(zipped(only(tensor(shape=(1,)).replace(many(number(1)), b"(\x88t", 1))))
)
attack("pickle-dimensions")(file(zipped(only(tensor(shape=(1,) * 2000, stride=(1,) * 2000)))))
attack("pickle-strides-missing")(file(zipped(only(tensor(shape=(1, 2))))))
attack("pickle-storage-type")(file(zipped(only(tensor(storage(kind="Size"))))))
attack("pickle-storage-elements")(file(zipped(only(tensor(storage(elements=-2))))))
attack("pickle-storage-two-types")(
    file(
        zipped(
            state(
                (text("a"), tensor()),
                (text("w"), tensor(storage(elements=1, kind="FloatStorage"), (1,))),
            )
        )
    )
)
attack("pickle-storage-elsewhere")(file(zipped(only(tensor(storage("../../../etc/passwd"))))))
attack("pickle-storage-unnamed")(file(zipped(only(tensor(storage("x" * 1000))))))
attack("pickle-wrapper-subclass")(
    file(zipped(only(found("torch._utils", "_rebuild_wrapper_subclass") + b")R")))
)
attack("pickle-parameter-of-meta")(
    file(
        zipped(
            only(
                found("torch._utils", "_rebuild_parameter")
                + many(found("torch._utils", "_rebuild_meta_tensor_no_storage") + b")R")
                + b"R"
            )
        )
    )
)
attack("pickle-parameter-of-a-number")(
    file(zipped(only(found("torch._utils", "_rebuild_parameter") + many(number(1)) + b"R")))
)

# --- the old format -------------------------------------------------------------------------------

_OLD = only(tensor(storage().removesuffix(b"tQ") + b"NtQ"))


def _part(start: int, count: int) -> bytes:
    """A part of a storage, as torch wrote it before 0.4."""
    view = many(text("1"), number(start), number(count))
    return only(tensor(storage().removesuffix(b"tQ") + view + b"tQ"))


attack("pickle-old-unlisted")(file(in_a_row(_OLD, [], b"")))
attack("pickle-old-listed-twice")(file(in_a_row(_OLD, ["0", "0"], bytes(24))))
attack("pickle-old-other-size")(file(in_a_row(_OLD, ["0"], struct.pack("<q", 1) + bytes(4))))
attack("pickle-old-size-negative")(file(in_a_row(_OLD, ["0"], struct.pack("<q", -2) + bytes(4))))
attack("pickle-old-cut")(file(in_a_row(_OLD, ["0"], struct.pack("<q", 2) + bytes(3))))
attack("pickle-old-whole")(file(in_a_row(_OLD, ["0"], struct.pack("<q", 2) + bytes(4))))
attack("pickle-old-part-beyond")(
    file(in_a_row(_part(1, 2), ["0"], struct.pack("<q", 2) + bytes(4)))
)

# --- the zip file ---------------------------------------------------------------------------------


def _edited(*changes: tuple[bytes, bytes]) -> bytes:
    data = zipped(only(tensor()))
    for old, new in changes:
        assert old in data
        data = data.replace(old, new)
    return data


def _entry(name: bytes, at: int, value: bytes) -> bytes:
    """The zip file with some bytes of a member's entry in the directory changed."""
    data = bytearray(zipped(only(tensor())))
    start = data.rindex(name) - 46 + at
    data[start : start + len(value)] = value
    return bytes(data)


attack("pickle-zip-member-twice")(
    file(zipped(only(tensor()), {"0": bytes(4), "1": b""}).replace(b"data/1", b"data/0"))
)
attack("pickle-zip-overlap")(file(_entry(b"archive/data/0", 42, bytes(4))))
attack("pickle-zip-beyond")(file(_entry(b"archive/data/0", 42, struct.pack("<I", 1 << 30))))
attack("pickle-zip-size-huge")(
    file(_entry(b"archive/data/0", 20, struct.pack("<II", 1 << 30, 1 << 30)))
)
attack("pickle-zip-two-sizes")(file(_entry(b"archive/data/0", 20, struct.pack("<II", 4, 1 << 30))))
attack("pickle-zip-wide-sizes")(file(_entry(b"archive/data/0", 20, b"\xff" * 8)))
attack("pickle-zip-encrypted")(file(_entry(b"archive/data/0", 8, b"\x01")))
attack("pickle-zip-compressed-member")(file(_entry(b"archive/data/0", 10, b"\x08")))
attack("pickle-zip-behind")(file(zipped(only(tensor())) + bytes(100)))
attack("pickle-zip-before")(file(b"PK\x03\x04" + bytes(100) + zipped(only(tensor()))))
attack("pickle-zip-no-pickle")(file(_edited((b"data.pkl", b"data.pkx"))))
attack("pickle-zip-count")(
    file(_edited((b"PK\x05\x06\0\0\0\0\x02\0\x02\0", b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff")))
)
attack("pickle-zip-good")(file(zipped(only(tensor()))))
