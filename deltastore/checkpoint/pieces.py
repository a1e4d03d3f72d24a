"""Files that hold a part of a model: numbered shards, and what trainers write rank by rank."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltastore.checkpoint.index import listed
from deltastore.checkpoint.model import Shard
from deltastore.errors import CheckpointCorruptError

NUMBERED = re.compile(
    r"((?P<stem>.+)[-_.])?(?P<number>\d{1,9})-of-(?P<count>\d{1,9})(?P<variant>(\.\w+)?)"
    r"(?P<suffix>\.\w+)\Z",
    re.ASCII,
)

SHARDING = "DCP_SHARDING_INFO"
"""Where torch.distributed.checkpoint says, in a file's metadata, which part of each tensor is in
it."""

_FETCH = "Fetch the missing files, e.g. `hf download org/name`."


@dataclass(frozen=True, slots=True)
class _ByRank:
    """How some trainer names what each of its processes writes."""

    names: re.Pattern[str]
    hint: str
    ever_whole: bool = True


_BY_RANK = (
    _ByRank(
        re.compile(r"consolidated\.(?P<rank>\d+)\.\w+\Z", re.ASCII),
        "Convert all of them to one model in the Hugging Face layout, as `transformers` does by "
        "its script convert_llama_weights_to_hf.py.",
    ),
    _ByRank(
        re.compile(r"mp_rank_(?P<rank>\d+)_model_states\.pt\Z", re.ASCII),
        "Put them together by the script that DeepSpeed left beside them: "
        "`python zero_to_fp32.py . OUT`.",
    ),
    _ByRank(
        re.compile(r"\w*zero_pp_rank_\d+_mp_rank_(?P<rank>\d+)_\w+_states\.pt\Z", re.ASCII),
        "Put them together by the script that DeepSpeed left beside them: "
        "`python zero_to_fp32.py . OUT`.",
        ever_whole=False,
    ),
    _ByRank(
        re.compile(r"layer_\d+-model_(?P<rank>\d+)-model_states\.pt\Z", re.ASCII),
        "Have the whole model saved, in the Hugging Face layout.",
        ever_whole=False,
    ),
    _ByRank(
        re.compile(r"model_world_size_(?P<count>\d+)_rank_(?P<rank>\d+)\.pt\Z", re.ASCII),
        "Put them together by verl: `python -m verl.model_merger merge --backend fsdp`.",
    ),
    _ByRank(
        re.compile(
            r"(model-|(tp_|pp_|mp_|dp_|ep_)*)rank[-_]?(?P<rank>\d+)(-part-\d+)?"
            r"\.(safetensors|bin|pt|pth|ckpt)\Z",
            re.ASCII,
        ),
        "Have the whole model saved, in the Hugging Face layout.",
    ),
)


def families(names: Iterable[str]) -> dict[str, list[str]]:
    """Numbered shards by what stands before their numbers, and a variant such as ``.fp16``."""
    found: dict[str, list[str]] = {}
    for name in names:
        match = NUMBERED.match(name)
        if match:
            found.setdefault((match["stem"] or "") + match["variant"], []).append(name)
    return found


def unnamed_siblings(named: Sequence[str], names: Iterable[str]) -> list[str]:
    """Of ``names``, the shards of the same saving as some of ``named`` that are not among them."""
    savings = {_saving(name) for name in named} - {None}
    return sorted(name for name in set(names) - set(named) if _saving(name) in savings)


def _saving(name: str) -> tuple[str, ...] | None:
    match = NUMBERED.match(name)
    return match and (match["stem"], match["count"], match["variant"], match["suffix"])


def require_complete(directory: Path, family: list[str]) -> None:
    """Refuse numbered shards that are not all there, or of several savings.

    Raises:
        CheckpointCorruptError: They are.
    """
    parts = [match for name in family if (match := NUMBERED.match(name))]
    counts = {int(part["count"]) for part in parts}
    if len(counts) > 1:
        raise CheckpointCorruptError(
            f"{directory} holds shards of several savings, without an index: {listed(family)}.",
            hint="Move the files of all but one saving away.",
            path=str(directory),
        )
    count = counts.pop()
    present = {int(part["number"]) for part in parts}
    # Never a set of all numbers: a file name may claim a thousand million of them.
    if len(parts) == len(present) == count and (min(present), max(present)) == (1, count):
        return
    absent = [number for number in range(1, min(count, 10_000) + 1) if number not in present]
    raise CheckpointCorruptError(
        f"{directory} holds {len(parts)} of {count} shards ({listed(family)}) and no index; "
        f"missing are the numbers {listed([str(number) for number in absent])}.",
        hint=_FETCH,
        path=str(directory),
    )


def require_whole(path: Path, names: Sequence[str]) -> None:
    """Refuse a file that is one shard of several, which would pass for a small model.

    Args:
        path: The file.
        names: What lies in its directory.

    Raises:
        CheckpointCorruptError: It is one.
    """
    match = NUMBERED.match(path.name)
    count = int(match["count"]) if match else 1
    if count != 1:
        here = 1 + len(unnamed_siblings([path.name], names))
        raise CheckpointCorruptError(
            f"{path} is one of {count} shards; expected a whole model.",
            hint=f"Give the directory of all of them: {path.parent}."
            if here == count
            else f"Fetch the other {count - here} as well, e.g. `hf download org/name`, and give "
            "their directory.",
            path=str(path),
        )
    require_one_rank(path.parent, [path.name], names)


def require_one_rank(directory: Path, files: Sequence[str], names: Sequence[str]) -> None:
    """Refuse files that hold what one of several processes of a trainer had of the model.

    Args:
        directory: Where they lie.
        files: What is to be read.
        names: What lies in the directory; a file of rank 0 that is alone there is whole.

    Raises:
        CheckpointCorruptError: One of the files is such a part.
    """
    for name in files:
        for kind in _BY_RANK:
            match = kind.names.match(name)
            if match is None:
                continue
            if kind.ever_whole and _is_alone(match, names):
                continue
            raise CheckpointCorruptError(
                f"{directory / name} is what one process of several wrote of a model; expected a "
                "whole model.",
                hint=kind.hint,
                path=str(directory / name),
            )


def _is_alone(match: re.Match[str], names: Sequence[str]) -> bool:
    """Whether there was one process: its rank is 0, and there is no file of another."""
    others = [name for name in names if match.re.match(name)]
    count = match.groupdict().get("count")
    return int(match["rank"]) == 0 and len(others) <= 1 and (count is None or int(count) == 1)


def require_whole_tensors(shards: Sequence[Shard], *, indexed: bool) -> None:
    """Refuse files of torch.distributed.checkpoint that hold parts of tensors.

    Their parts have the names of the tensors, so that those of one process pass for a model. What
    it saves from one process alone it gives an index, and no tensor begins anywhere but at 0.

    Raises:
        CheckpointCorruptError: A file may be one.
    """
    for shard in shards:
        said = shard.metadata.get(SHARDING)
        if said is None or (indexed and _begin_at_zero(said, shard.tensors)):
            continue
        raise CheckpointCorruptError(
            f"{shard.path} holds what one process had of a model ({SHARDING} in its metadata, by "
            "torch.distributed.checkpoint); expected whole tensors.",
            hint="Save the model again by `HuggingFaceStorageWriter(path, save_distributed=True, "
            "enable_consolidation=True)`, or put all such files together by torch's "
            "`consolidate_safetensors_files`.",
            path=str(shard.path),
        )


def _begin_at_zero(said: str, names: Iterable[str]) -> bool:
    try:
        fields = json.loads(said)
        offsets = [offset for name in names for offset in fields[name]["saved_offsets"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return not any(offsets)
