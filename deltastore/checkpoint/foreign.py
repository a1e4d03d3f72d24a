"""Saying what was found where weights were expected."""

from __future__ import annotations

from pathlib import Path

from deltastore.checkpoint.index import listed
from deltastore.errors import NoWeightsError
from deltastore.text import typed

SAFETENSORS = (".safetensors",)
PICKLES = (".bin", ".pt", ".pth", ".ckpt")

FOREIGN = {
    ".gguf": "a GGUF file of llama.cpp",
    ".h5": "a TensorFlow file",
    ".msgpack": "a Flax file",
    ".onnx": "an ONNX file",
    ".npz": "a numpy archive",
    ".distcp": "a distributed checkpoint of torch",
}
_DISTRIBUTED = (
    "Make one file of it: `python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
    "{directory} pytorch_model.bin`; if that holds more than the model's tensors, save these alone."
)
_LOOKED_AT = 1000


def unreadable_file(path: Path) -> NoWeightsError:
    """The error for a file that is no weight file."""
    suffix = path.suffix.lower()
    kind = FOREIGN.get(suffix, "something else")
    return NoWeightsError(
        f"{path} is {kind}; expected {SAFETENSORS[0]}, {', '.join(PICKLES)} or an .index.json.",
        hint=_DISTRIBUTED.format(directory=typed(path.parent))
        if suffix == ".distcp"
        else "Give the directory or the weight file of a checkpoint in the Hugging Face layout.",
        path=str(path),
    )


def no_weights(directory: Path, names: list[str]) -> NoWeightsError:
    """The error for a directory without weights; says what is there, and where weights are."""
    foreign = [name for name in names if Path(name).suffix.lower() in FOREIGN]
    if foreign:
        found = f"{foreign[0]}, {FOREIGN[Path(foreign[0]).suffix.lower()]}"
    else:
        found = listed(names) if names else "no files"
    hint = "Give a directory with .safetensors (or pytorch_model*.bin) files in it."
    if any(name.endswith(".distcp") for name in names):
        hint = _DISTRIBUTED.format(directory=typed(directory))
    below = _weights_below(directory)
    if below:
        hint = f"There are weights in {listed(below)}: give such a directory."
    return NoWeightsError(
        f"{directory} holds no weights that deltastore reads; found {found}.",
        hint=hint,
        path=str(directory),
        found=names[:_LOOKED_AT],
    )


def _weights_below(directory: Path) -> list[str]:
    # Two levels reach the snapshots in a repository's folder of the Hub's cache.
    found: set[str] = set()
    try:
        for pattern in ("*/*", "*/*/*"):
            for _, path in zip(range(_LOOKED_AT), directory.glob(pattern), strict=False):
                if path.name.endswith(SAFETENSORS + PICKLES):
                    found.add(str(path.parent))
    except OSError:
        pass  # This only embellishes a message.
    return sorted(found)
