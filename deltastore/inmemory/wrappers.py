"""What a module holds in memory, under the names that it has without its wrappers.

``torch.compile``, data parallelism, FSDP and activation checkpointing put modules around a model;
an adapter of PEFT puts one around each layer that it adapts. Their names are no part of the names
that a checkpoint of the model has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltastore.errors import IncompatibleError

if TYPE_CHECKING:
    import torch

_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What wrappers call the one module in them; no model calls its own parts so."""

_PARALLEL = frozenset({"DataParallel", "DistributedDataParallel"})
"""Classes that call the module in them ``module``, as models do too."""


@dataclass(frozen=True, slots=True)
class Held:
    """A parameter or buffer of a module.

    Attributes:
        path: Its name in the module's ``state_dict``.
        name: The same without wrappers.
        value: The tensor itself, no copy.
        owner: The outermost model of transformers that it is a part of; None if there is none.
        inner: Its name within that model.
    """

    path: str
    name: str
    value: torch.Tensor
    owner: Any = None
    inner: str = ""


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """The model within the wrappers that are around the whole of it."""
    inner: torch.nn.Module | None = module
    while inner is not None:
        module = inner
        _, inner = _inner(module, whole=True)
    return module


def held(module: torch.nn.Module) -> Iterator[Held]:
    """The parameters and persistent buffers of a module, each under every name that it has.

    Tensors of an adapter are left out: what it adapts is the model.

    Raises:
        IncompatibleError: The model is sharded, and whole tensors are not in memory.
    """
    yield from _walk(module, "", "", None, "", whole=True)


def _walk(
    module: Any, path: str, name: str, owner: Any, start: str, *, whole: bool
) -> Iterator[Held]:
    if module is None:
        return
    _refuse_shards(module, name)
    key, inner = _inner(module, whole=whole)
    if inner is not None:
        yield from _walk(inner, f"{path}{key}.", name, owner, start, whole=whole)
        return
    if owner is None and is_pretrained(module):
        owner, start = module, name
    tensors = {**module._parameters, **_persistent(module)}
    for key, value in tensors.items():
        if value is not None:
            full = f"{name}{key}"
            yield Held(f"{path}{key}", full, value, owner, full.removeprefix(start))
    for key, child in module._modules.items():
        yield from _walk(child, f"{path}{key}.", f"{name}{key}.", owner, start, whole=False)


def _persistent(module: Any) -> dict[str, Any]:
    passing = module._non_persistent_buffers_set
    return {key: value for key, value in module._buffers.items() if key not in passing}


def _inner(module: Any, *, whole: bool) -> tuple[str, Any]:
    """The path to the module that this one only wraps, and that module; None if it is no wrapper.

    Args:
        module: Perhaps a wrapper.
        whole: It is the whole model, or around it.
    """
    parts = {key: part for key, part in module._modules.items() if part is not None}
    adapts = _of_peft(module)
    for key in _WRAPPED:
        if key in parts:
            return key, parts[key]
    alone = len(parts) == 1 and not module._parameters and not module._buffers
    if alone and "module" in parts and (whole or _kinds(module) & _PARALLEL):
        return "module", parts["module"]
    if "base_layer" in parts and (adapts or any(key.startswith("lora_") for key in parts)):
        return "base_layer", parts["base_layer"]
    if "original_module" in parts and (adapts or "modules_to_save" in parts):
        return "original_module", parts["original_module"]
    if whole and not is_pretrained(module) and "base_model" in parts:
        # A tuner holds the model that it adapts; a trained prompt stands before the model itself.
        base = parts["base_model"]
        model = base._modules.get("model")
        if model is not None and not is_pretrained(base) and (adapts or is_pretrained(model)):
            return "base_model.model", model
        if adapts:
            return "base_model", base
    if whole and adapts and "model" in parts:
        return "model", parts["model"]
    return "", None


def is_pretrained(module: object) -> bool:
    """Whether it is a model of transformers, which is not imported to find out."""
    return any(
        kind.__name__ == "PreTrainedModel" and kind.__module__ == "transformers.modeling_utils"
        for kind in type(module).__mro__
    )


def _of_peft(module: object) -> bool:
    return any(kind.__module__.partition(".")[0] == "peft" for kind in type(module).__mro__)


def _kinds(module: object) -> frozenset[str]:
    return frozenset(kind.__name__ for kind in type(module).__mro__)


def _refuse_shards(module: Any, name: str) -> None:
    """Refuse FSDP's flat parameters, and its shards of parameters that keep their names.

    Within ``summon_full_params`` they are whole.
    """
    flat = "_flat_param" in module._parameters
    strategy = str(getattr(module, "sharding_strategy", "NO_SHARD"))
    summoned = str(getattr(module, "training_state", "")).endswith("SUMMON_FULL_PARAMS")
    parts = "FullyShardedDataParallel" in _kinds(module) and not summoned
    if flat or (parts and not strategy.endswith("NO_SHARD")):
        where = name.removesuffix(".") or "the whole model"
        raise IncompatibleError(
            f"FSDP holds {where} as shards or in one flat parameter; expected whole tensors.",
            hint="Patch it within `with FullyShardedDataParallel.summon_full_params(model):`, on "
            "every rank, or before it is wrapped.",
            tensor=name.removesuffix("."),
        )
