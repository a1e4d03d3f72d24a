"""Recognising quantised checkpoints, whose numbers have no meaningful difference.

The tensors decide. A quantised module keeps its weight in few bits, or packs it into integers,
and beside it what makes numbers of them: scales, zero points, a codebook. Every tool has names of
its own for these; so dtypes, shapes and the words in names are looked at, and whole names only
where those tell nothing. What ``config.json`` declares outlives the quantisation, when weights are
cast back, and counts only where a tensor agrees.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from deltastore.checkpoint.reader import Checkpoint
from deltastore.manifest.format import MAX_JSON_DEPTH


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


DECLARATIONS = ("quantization_config", "compression_config")
"""Fields of ``config.json``, at any nesting, that declare a quantisation."""

_FP8 = frozenset({"F8_E4M3", "F8_E5M2"})
_FLOATS = frozenset({"BF16", "F16", "F32", "F64"})
_PACKED = frozenset({"I8", "U8", "I16", "U16", "I32", "U32"})
"""What weights are packed into; I64 is what indices are kept in."""

_BYTE_SCALES = frozenset({*_FP8, "U8", "I8"})
"""What scales of packed weights are kept in where they are no floats: exponents, as in MXFP4."""

_NAMES = {
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "nested_absmax": "bitsandbytes",
    "nested_quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_packed": "compressed-tensors",
    "W_q": "HQQ",
    "Qidxs": "QuIP#",
    "trellis": "EXL3 or QTIP",
    "dense_weights": "SpQR",
    "scaled_fp8": "ComfyUI's scaled fp8",
    "comfy_quant": "ComfyUI's quantised layers",
}
"""Last parts of names that no unquantised model uses."""

_SCALE_WORDS = _listed(
    "scale scales scaling descale qscale wscale wscales absmax amax scb sf zero zeros zp qzero "
    "codebook codebooks centroids tables lut lut2 lut3 lut4 lookup"
)
"""One of these is in the name of what turns packed numbers into weights."""

_PLAIN_WORDS = _listed(
    "weight weights w q qweight qdata data packed block blocks quantized quant quantizer inv "
    "global group per channel tensor row rows col cols input output in out act activation point "
    "points factor factors ub codes indices binary table and 2 int4 int8 fp4 fp8 nf4"
)
"""Words of such names that do not say whose they are."""

_INDEX_WORDS = _listed(
    "index indices idx idxs id ids tid2eid mask masks masked position positions pos num count "
    "counts step steps offset offsets perm order ordering bucket buckets length lengths hash "
    "table map tokens tracked"
)
"""Words in the names of integers that are integers, and not weights."""

_LEAST_ELEMENTS = 64
"""Smaller integers are a buffer rather than a weight, if nothing else speaks for one."""

_MOST_BESIDE = 64
"""So many tensors of one module are compared by their shapes."""


class Stored(Protocol):
    """What there is to know of a tensor without reading it."""

    @property
    def dtype(self) -> str:
        """The safetensors name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""

    @property
    def elements(self) -> int:
        """Their product."""


def quantisation(checkpoint: Checkpoint) -> str | None:
    """Why the checkpoint counts as quantised, as the end of a sentence; None if it does not."""
    return quantised_weights(checkpoint.tensors, checkpoint.config or {})


def quantised_weights(tensors: Mapping[str, Stored], config: Mapping[str, Any]) -> str | None:
    """The same of tensors by name and what is said of them.

    Unscaled fp8 is not quantised: its values are what the model computes with. A declaration is
    believed where there is any weight in few bits.
    """
    found = _by_names(tensors) or _by_scales(tensors)
    for key, value in declarations(config):
        agreeing = found or _few_bits(tensors)
        if agreeing is not None:
            return f"its config.json has a {key} ({method_of(value)}), and {agreeing}"
    return found


def declarations(config: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """What a configuration declares, at any nesting: the field's name and its value."""
    if depth > MAX_JSON_DEPTH:
        return
    if isinstance(config, list):
        for item in config:
            yield from declarations(item, depth + 1)
    for key, value in config.items() if isinstance(config, dict) else ():
        if not is_declaration(key, value):
            yield from declarations(value, depth + 1)
        elif value:
            yield key, value


def is_declaration(key: str, value: Any) -> bool:
    """Whether a field says how weights are stored.

    What is quantised online, as BitNet's, says how plain weights are computed with.
    """
    online = isinstance(value, dict) and value.get("quantization_mode") == "online"
    return key in DECLARATIONS and not online


def method_of(declared: Any) -> str:
    """How a declaration calls its method."""
    method = declared.get("quant_method") if isinstance(declared, dict) else None
    return f"quant_method {method!r:.40}"


@dataclass(slots=True, eq=False)
class _Module:
    """The tensors of a module, those of parts of its weight among them.

    ``scales``: those with a scale's name, by what else is in it; ``beside``: all others.
    """

    scales: dict[tuple[str, ...], list[tuple[str, Stored]]]
    beside: list[tuple[str, Stored]]
    has_weight: bool = False


def _by_names(tensors: Mapping[str, Stored]) -> str | None:
    for name, tensor in tensors.items():
        last = name.rpartition(".")[2]
        if last in _NAMES:
            return f"the tensor {name} is one of {_NAMES[last]}"
        if last.startswith("quant_state") or ".quant_state." in name:
            return f"the tensor {name} is one of bitsandbytes"
        if tensor.dtype == "F8_E8M0":
            return f"the tensor {name} holds block scales (F8_E8M0)"
        for ending in ("_scales", "_blocks"):
            # Bytes that stand for a tensor which is not there itself, as in MXFP4.
            stem = name.removesuffix(ending)
            if stem != name and {f"{stem}_scales", f"{stem}_blocks"} <= tensors.keys():
                blocks = tensors[f"{stem}_blocks"]
                if blocks.dtype in _PACKED:
                    return f"the tensor {stem}_scales scales {stem}_blocks, which is {blocks.dtype}"
        if last == "indices" and f"{name.removesuffix(last)}centroids.weight" in tensors:
            return f"the tensor {name} points into centroids, as of VPTQ"
    return None


def _by_scales(tensors: Mapping[str, Stored]) -> str | None:
    narrow = [n for n, t in tensors.items() if t.dtype in _PACKED or t.dtype in _FP8]
    if not narrow:
        return None
    modules = _modules(tensors)
    for name in narrow:
        tensor = tensors[name]
        path, key, is_scale = _place(name)
        if is_scale:
            continue
        module = modules[path]
        packed = tensor.dtype in _PACKED
        is_buffer = packed and (module.has_weight or _is_index(name, tensor))
        scales = module.scales.get(key, [])[:_MOST_BESIDE] if key or not is_buffer else []
        if key and not is_buffer and _is_large(tensor):
            scales = scales + module.scales.get((), [])[:_MOST_BESIDE]
        for other, scale in scales:
            if packed or (scale.dtype not in _FP8 and scale.elements <= tensor.elements):
                return f"the tensor {other} scales {name}, which is {tensor.dtype}"
        if is_buffer or not _is_large(tensor):
            continue
        for other, beside in module.beside[:_MOST_BESIDE]:
            if _may_scale(other, beside, tensor):
                return f"the tensor {other} fits {name}, which is {tensor.dtype}, as scales do"
    most = sum(tensors[name].elements for name in narrow if tensors[name].dtype in _PACKED) * 2
    if most > sum(tensor.elements for tensor in tensors.values()):
        # Whatever turns them into numbers: packed weights are most of what there is.
        weights = (n for n in narrow if _last(n) == "weight" and _is_large(tensors[n]))
        for name in weights:
            if _INDEX_WORDS.isdisjoint(_words(_last(_place(name)[0]))):
                return f"the tensor {name} is a weight in {tensors[name].dtype}"
    return None


def _few_bits(tensors: Mapping[str, Stored]) -> str | None:
    """The first weight in few bits, whatever is beside it."""
    modules = _modules(tensors)
    for name, tensor in tensors.items():
        fp8 = tensor.dtype in _FP8 and len(tensor.shape) > 1
        packed = tensor.dtype in _PACKED and _is_large(tensor) and not _is_index(name, tensor)
        if fp8 or (packed and not modules[_place(name)[0]].has_weight):
            return f"the tensor {name} is {tensor.dtype}"
    return None


def _modules(tensors: Mapping[str, Stored]) -> Mapping[str, _Module]:
    modules: dict[str, _Module] = defaultdict(lambda: _Module({}, []))
    for name, tensor in tensors.items():
        path, key, is_scale = _place(name)
        module = modules[path]
        if is_scale:
            module.scales.setdefault(key, []).append((name, tensor))
        else:
            module.beside.append((name, tensor))
        full = tensor.dtype in _FLOATS and len(tensor.shape) > 1
        module.has_weight |= full and name == f"{path}.weight".lstrip(".")
    return modules


@lru_cache(4096)
def _place(name: str) -> tuple[str, tuple[str, ...], bool]:
    """A tensor's module, what its name says beyond "weight" and "scale", and if it says "scale".

    What is kept of a weight in parts, as ``up.weight._data`` and ``up.weight_quantizer.scale``,
    belongs to the module of the weight.
    """
    *path, last = re.split(r"[.:]", name)
    words = _words(last)
    is_scale = not _SCALE_WORDS.isdisjoint(words)
    if path:
        of_part = _words(path[-1])
        known = all(word in _SCALE_WORDS or word in _PLAIN_WORDS for word in of_part)
        if known and not path[-1].isdigit() and ("weight" in of_part or "centroids" in of_part):
            is_scale |= not _SCALE_WORDS.isdisjoint(of_part)
            path.pop()
    key = tuple(w for w in words if w not in _SCALE_WORDS and w not in _PLAIN_WORDS)
    return ".".join(path), key, is_scale


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _words(part: str) -> list[str]:
    return [word for word in part.lower().split("_") if word]


def _is_index(name: str, tensor: Stored) -> bool:
    """Whether integers are what they seem: positions, masks, ids."""
    *leading, rows, columns = (1, 1, *tensor.shape)
    is_mask = len(tensor.shape) > 2 and rows == columns and all(n == 1 for n in leading)
    return is_mask or not _INDEX_WORDS.isdisjoint(_words(_last(name)))


def _is_large(tensor: Stored) -> bool:
    """Whether it may be a weight: a matrix, or several."""
    return tensor.elements >= _LEAST_ELEMENTS and sum(n > 1 for n in tensor.shape) > 1


def _may_scale(name: str, scale: Stored, tensor: Stored) -> bool:
    """Whether one tensor has a number for each row, column or block of another, larger one.

    Beside fp8, which may be plain, only what has a number for each block is no other parameter.
    """
    if scale.elements * 2 > tensor.elements or _last(name) == "bias":
        return False
    wide = [n for n in scale.shape if n > 1]
    blocks = len(wide) > 1 and _are_blocks(scale.shape, tensor.shape)
    if scale.dtype in _FLOATS:
        if tensor.dtype in _FP8:
            pairs = zip(scale.shape[-2:], tensor.shape[-2:], strict=True)
            return blocks and all(1 < few < many for few, many in pairs)
        return blocks or (len(wide) == 1 and wide[0] in tensor.shape)
    if scale.dtype not in _BYTE_SCALES or _is_index(name, scale) or tensor.dtype in _FP8:
        return False
    return blocks or (len(wide) > 1 and scale.shape == tensor.shape[:-1])


def _are_blocks(few: tuple[int, ...], many: tuple[int, ...]) -> bool:
    """Whether a shape cuts another one into equal blocks."""
    return len(few) == len(many) and all(a and b % a == 0 for a, b in zip(few, many, strict=True))
