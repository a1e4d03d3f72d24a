"""Which codec a spec means: ``exact``; with options, ``round:8``.

A *spec* is a codec's name and its options, each after a colon. One codec may be written in several
ways, ``round:8`` and ``round:08``: what it calls itself is the canonical spec, which is kept with
what it encoded and tells artifacts of one pair apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from deltastore.codecs.contract import Codec
from deltastore.errors import CodecUnknownError, UsageError, shown

ENTRY_POINTS = "deltastore.codecs"
"""The group of entry points by which another package has codecs of its own."""

Factory = Callable[..., Codec]
"""Makes a codec of the options of a spec: one text for each, which anybody may have written.

Raises ``ValueError`` with what an option should be, where it is not that.
"""

_OWN = {"exact": EntryPoint("exact", "deltastore.codecs.exact:ExactCodec", ENTRY_POINTS)}
_registered: dict[str, Factory] = {}


def register_codec(name: str, factory: Factory) -> None:
    """Have this process know a codec; a package names its own among its entry points.

    Args:
        name: What its specs begin with.
        factory: The codec's class, or a function.

    Raises:
        ValueError: deltastore has one of this name itself.
    """
    if name in _OWN:
        raise ValueError(f"{name} is a codec of deltastore")
    _registered[name] = factory


def codec_names() -> tuple[str, ...]:
    """What the specs of all codecs here begin with, in alphabetical order."""
    return tuple(sorted({*_OWN, *_registered, *entry_points(group=ENTRY_POINTS).names}))


def get_codec(spec: str) -> Codec:
    """The codec that a spec means.

    Raises:
        UsageError: There is none of that name, or it does not take these options.
    """
    name = spec.split(":")[0]
    factory = _factory(name)
    if factory is None:
        raise UsageError(
            f"Codec {shown(name)} is not known; this deltastore has {', '.join(codec_names())}.",
            hint="Upgrade deltastore, or choose one of these with `--codec`.",
        )
    return _made(factory, spec)


@lru_cache(maxsize=64)  # each of a hundred thousand tensors asks
def _made(factory: Factory, spec: str) -> Codec:
    name, *options = spec.split(":")
    signature = inspect.signature(factory)
    options_form = (
        f":{option.name.upper()}" if option.default is option.empty else f"[:{option.name.upper()}]"
        for option in signature.parameters.values()
    )
    form = name + "".join(options_form)
    try:
        signature.bind(*options)
    except TypeError as error:
        raise _wrong(spec, form, "") from error
    try:
        return factory(*options)
    except ValueError as error:
        raise _wrong(spec, form, f"; {error}") from error


def stored_codec(spec: str, *, where: str) -> Codec:
    """The codec that an artifact names.

    Args:
        spec: What it names.
        where: What to call the stream in an error.

    Raises:
        CodecUnknownError: There is none here.
    """
    try:
        return get_codec(spec)
    except UsageError as error:
        raise CodecUnknownError(
            f"{where} is encoded by {shown(spec)}; this deltastore reads "
            f"{', '.join(codec_names())}.",
            hint="Upgrade deltastore, `pip install -U deltastore`, or install the package that "
            "has this codec.",
        ) from error


def _factory(name: str) -> Factory | None:
    if name not in _registered:
        # Looking at all packages takes a moment, and our own need not be looked for.
        found = [_OWN[name]] if name in _OWN else entry_points(group=ENTRY_POINTS, name=name)
        for point in found:
            _registered[name] = point.load()
    return _registered.get(name)


def _wrong(spec: str, form: str, why: str) -> UsageError:
    return UsageError(
        f"Codec {shown(spec)} has other options than expected: {form}{why}.",
        hint=f"Choose the codec with `--codec {form}`.",
    )
