"""What lies beside the weights that are read: what travels with them, and what does not.

Nothing of a repository may vanish in silence: what is neither read nor carried is named, unless
it is of no use to the model, such as a trainer's state or a picture.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path

from deltastore.checkpoint.files import file_error
from deltastore.checkpoint.foreign import FOREIGN, PICKLES, SAFETENSORS
from deltastore.checkpoint.small_files import (
    MAX_MODEL_FILE_BYTES,
    MAX_NAMED_TEMPLATES,
    MODULES,
    is_code,
    is_model_file,
    is_named_template,
    is_small_file,
    module_folders,
)
from deltastore.text import excerpt

Left = dict[str, str]
"""Names of what does not travel, and why not."""

ANOTHER_FORM = "the model in another form"
"""Why what holds the same weights once more is left: it is in the JSON, and nobody misses it."""

MAX_MODEL_FILES = 64
MAX_MODEL_FILES_BYTES = 16 << 20
"""All files of a checkpoint together that have no rule of their own."""

MAX_LEFT = 200
"""Names of what is left, in one checkpoint; the rest is counted."""

_SHOWN_OF_A_FOLDER = 3
_MAX_LISTED = 1000
"""Files of a folder that are looked at; that there are so many is enough to name it."""

_MAX_DEPTH = 4
_MAX_NAME_CHARS = 500

_WEIGHTS = (*SAFETENSORS, *PICKLES, *FOREIGN, ".ot", ".mlmodel", ".tflite", ".pdparams")
_SHARD = re.compile(r"(?P<stem>.+)-\d{1,9}-of-(?P<count>\d{1,9})(?P<suffix>\.\w+)")
_NOISE = re.compile(
    # A trainer's, or the directory's own.
    r"(training_args|optimizer|scheduler|scaler)\b.*|rng_state.*|trainer_state\.json"
    r"|.*_results\.json|zero_to_fp32\.py|latest|events\.out\.tfevents.*|\..*|deltastore\.json"
    # Indices of weights, which are named themselves; pictures and texts for people.
    r"|.*\.index\.json|.*\.(png|jpe?g|gif|svg|webp|ico|mp4|webm|md|rst|pdf|html?|log|lock)",
    re.ASCII | re.IGNORECASE,
)
_LEGAL = re.compile(r"(licen[cs]e|notice|use.policy|third.party|copying)\b", re.IGNORECASE)
_FORM = re.compile(
    r"(pytorch_|tf_|flax_|rust_|openvino_)?model(\.[\w-]+)*(-\d+-of-\d+)?\.\w+|consolidated.*"
    r"|.*\.(onnx|gguf|h5|msgpack|ot|mlmodel|tflite|pdparams)",
    re.ASCII | re.IGNORECASE,
)
_FORM_FOLDERS = frozenset({"", "original", "onnx", "openvino", "coreml", "gguf", "flax", "tf"})
"""Where such files are the model's; elsewhere a ``model.safetensors`` is a part of it."""

_NOISY_FOLDER = re.compile(
    r"\..*|__pycache__|checkpoint-\d+|global_step\d+|runs|wandb|mlruns|logs", re.ASCII
)


def listing(directory: Path) -> dict[str, int]:
    """The files of a directory and of the folders in it, by relative name, with their sizes.

    Links to files are followed, as in the Hub's cache; links to folders are not. What is deep or
    numerous in a folder is not looked at.

    Raises:
        CheckpointError: The directory cannot be listed.
    """
    try:
        return dict(_walk(directory, "", _MAX_DEPTH))
    except OSError as error:
        raise file_error(error, directory, "list") from error


def travelling(sizes: Mapping[str, int | None], modules: bytes | None) -> list[str]:
    """The small files of a checkpoint: those with a rule of their own, and its model files.

    Of the latter only so many and so much; those that are known to matter come first.

    Args:
        sizes: Relative names and sizes of all that is there; None where it is not known.
        modules: Its ``modules.json``.
    """
    folders = module_folders(modules)
    found = [name for name in sizes if is_small_file(name) and not is_named_template(name)]
    found += sorted(filter(is_named_template, sizes))[:MAX_NAMED_TEMPLATES]
    candidates = [
        name
        for name, size in sizes.items()
        if is_model_file(name)
        and ("/" not in name or name.split("/")[0] in folders)
        and size is not None
        and size <= MAX_MODEL_FILE_BYTES
    ]
    total = 0
    for name in sorted(candidates, key=_importance)[:MAX_MODEL_FILES]:
        total += sizes[name] or 0
        if total <= MAX_MODEL_FILES_BYTES:
            found.append(name)
    return sorted(found)


def left_behind(
    sizes: Mapping[str, int | None], files: Collection[str], weights: Collection[str]
) -> Left:
    """What is neither read nor travels, by name, folders as a whole where it is much.

    Args:
        sizes: Relative names of all that is there.
        files: Those of them that travel.
        weights: Those that are read.
    """
    known = {*files, *weights}
    found: Left = {}
    folders: dict[str, Left] = {}
    for name in sorted(sizes):
        folder, _, rest = name.partition("/")
        if name in known or _is_noise(name):
            continue
        place = folders.setdefault(folder, {}) if rest else found
        place[_family(_plain(name))] = _reason(name)
    for folder, rows in folders.items():
        if len(rows) <= _SHOWN_OF_A_FOLDER:
            found |= rows
        else:
            reasons = set(rows.values())
            weighty = "with weights" if "weights" in reasons else "of other files"
            one = ANOTHER_FORM if ANOTHER_FORM in reasons and "weights" not in reasons else None
            found[_plain(folder) + "/"] = one or f"a folder {weighty}"
    return dict(sorted(found.items()))


def _walk(directory: Path, prefix: str, depth: int) -> Iterator[tuple[str, int]]:
    """Files below a directory; what cannot be looked at, or goes away meanwhile, is none of it."""
    with os.scandir(directory) as entries:
        for entry in entries:
            name = prefix + entry.name
            with suppress(OSError):
                if not entry.is_dir():
                    if entry.is_file():
                        yield name, entry.stat().st_size
                elif depth and not (entry.is_symlink() or _NOISY_FOLDER.fullmatch(entry.name)):
                    below = _walk(Path(entry.path), f"{name}/", depth - 1)
                    yield from below if prefix else islice(below, _MAX_LISTED)


def _importance(name: str) -> tuple[bool, bool, str]:
    own = name.rpartition("/")[2]
    return name != MODULES, "config" not in own and own != "params.json", name


def _is_noise(name: str) -> bool:
    *folders, own = name.split("/")
    if not folders and _LEGAL.match(own):
        return False  # whatever it ends in, somebody may have to keep to it
    return bool(_NOISE.fullmatch(own)) or any(_NOISY_FOLDER.fullmatch(f) for f in folders)


def _family(name: str) -> str:
    """The shards of one saving under one name."""
    match = _SHARD.fullmatch(name)
    return f"{match['stem']}-*-of-{match['count']}{match['suffix']}" if match else name


def _plain(name: str) -> str:
    """A name as it may stand in a message and in an artifact."""
    return excerpt(name, _MAX_NAME_CHARS)


def _reason(name: str) -> str:
    if name.lower().endswith(_WEIGHTS):
        folder, _, own = name.rpartition("/")
        again = folder in _FORM_FOLDERS and _FORM.fullmatch(own)
        return ANOTHER_FORM if again else "weights"
    if is_code(name):
        return "code"
    if is_model_file(name) and "/" not in name:
        return "over the limits of what is carried"
    return "of no kind that is carried"


def bounded(left: Left) -> Left:
    """At most ``MAX_LEFT`` names, with one at the end that counts those that are not among them."""
    if len(left) <= MAX_LEFT:
        return dict(sorted(left.items()))
    rows = sorted(left.items())[: MAX_LEFT - 1]
    return dict(rows) | {f"~ and {len(left) - len(rows)} more": "too many to be named"}
