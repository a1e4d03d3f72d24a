"""Codecs that each break one promise; ``test_suites.py`` runs the suite on them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from deltastore.codecs import register_codec
from deltastore.codecs.exact import ExactCodec, ExactDecoder
from deltastore.testing.codecs import CodecContract


def wrapped(inner: Any, **instead: Any) -> Any:
    """The encoder or decoder with some of its members replaced."""
    members = {name: staticmethod(m) if callable(m) else m for name, m in instead.items()}
    made = object.__new__(type("Wrapped", (type(inner),), members))
    made.__dict__.update({name: m for name, m in vars(inner).items() if name not in instead})
    return made


class Broken(ExactCodec):
    """Hands out what ``encodes`` and ``decodes`` make of the honest ones."""

    def __init__(
        self,
        encodes: Callable[[Any], Any] = lambda encoder: encoder,
        decodes: Callable[[Any], Any] = lambda decoder: decoder,
    ) -> None:
        self._encodes, self._decodes = encodes, decodes

    def encoder(self, sample: Any, elements: int) -> Any:
        return self._encodes(super().encoder(sample, elements))

    def decoder(self, params: Mapping[str, Any], arrays: Any, *, where: str) -> Any:
        return self._decodes(super().decoder(params, arrays, where=where))


class Unregistered(Broken):
    name = "unregistered"


class Boundless(Broken):
    name = "boundless"
    exactness: Any = "bounded"


register_codec("boundless", Boundless)


def loses_signs_of_zero(decoder: Any) -> Any:
    def decode(frame: Any, out: Any) -> None:
        decoder.decode(frame, out)
        out[out == (1 << 31)] = 0

    return wrapped(decoder, decode=decode)


def adds_to_what_is_there(decoder: Any) -> Any:
    def decode(frame: Any, out: Any) -> None:
        before = out.copy()
        decoder.decode(frame, out)
        out[out == 0] = before[out == 0]

    return wrapped(decoder, decode=decode)


def counts_its_frames(encoder: Any) -> Any:
    count = itertools.count()

    def encode(delta: Any) -> bytes:
        # A skippable zstd frame in front of it.
        return (
            b"\x50\x2a\x4d\x18\x04\0\0\0"
            + next(count).to_bytes(4, "little")
            + encoder.encode(delta)
        )

    return wrapped(encoder, encode=encode)


def skips_the_count(decoder: Any) -> Any:
    return wrapped(decoder, decode=lambda frame, out: decoder.decode(frame[12:], out))


def spoils_its_input(encoder: Any) -> Any:
    def encode(delta: Any) -> bytes:
        frame = encoder.encode(delta)
        delta[:1] = 0
        return bytes(frame)

    return wrapped(encoder, encode=encode)


def says_nothing_where_all_is_kept(encoder: Any) -> Any:
    def encode(delta: Any) -> bytes:
        return b"" if (delta == 0x7FFF0000).all() else encoder.encode(delta)

    return wrapped(encoder, encode=encode)


def shares_a_buffer(encoder: Any) -> Any:
    shared = {"delta": np.empty(0, np.uint32)}

    def encode(delta: Any) -> bytes:
        shared["delta"] = delta
        time.sleep(0.002)
        return encoder.encode(shared["delta"])

    return wrapped(encoder, encode=encode)


def raises_index_errors(decoder: Any) -> Any:
    def decode(frame: Any, out: Any) -> None:
        try:
            decoder.decode(frame, out)
        except Exception as error:
            raise IndexError from error

    return wrapped(decoder, decode=decode)


def swallows_damage(decoder: Any) -> Any:
    def decode(frame: Any, out: Any) -> None:
        try:
            decoder.decode(frame, out)
        except Exception:
            out[:] = 0

    return wrapped(decoder, decode=decode)


def other_tokens(encoder: Any) -> Any:
    return wrapped(encoder, encode_tokens=lambda tokens, _: encoder.encode(tokens.astype("u4")))


def sees_no_tokens(decoder: Any) -> Any:
    return ExactDecoder(**vars(decoder))


BROKEN = {
    "LosesSignsOfZero": Broken(decodes=loses_signs_of_zero),
    "AddsToWhatIsThere": Broken(decodes=adds_to_what_is_there),
    "IsNotDeterministic": Broken(counts_its_frames, skips_the_count),
    "SpoilsItsInput": Broken(spoils_its_input),
    "MakesEmptyFrames": Broken(says_nothing_where_all_is_kept),
    "SharesABuffer": Broken(shares_a_buffer),
    "RaisesIndexErrors": Broken(decodes=raises_index_errors),
    "SwallowsDamage": Broken(decodes=swallows_damage),
    "SaysItCostsNothing": Broken(lambda encoder: wrapped(encoder, bytes_per_element=0.0)),
    "SaysItCostsTooMuch": Broken(lambda encoder: wrapped(encoder, bytes_per_element=99.0)),
    "MakesOtherTokens": Broken(other_tokens),
    "SeesNoTokens": Broken(decodes=sees_no_tokens),
    "IsNotRegistered": Unregistered(),
    "IsBoundedWithoutABound": Boundless(),
    "HasParametersThatAreNoJson": Broken(
        lambda encoder: wrapped(encoder, params={**encoder.params, "n": (1, 2)})
    ),
}
for _name, _codec in {"Sound": ExactCodec(), **BROKEN}.items():
    globals()[f"Test{_name}"] = type(
        f"Test{_name}", (CodecContract,), {"codec": pytest.fixture(lambda _self, _c=_codec: _c)}
    )
