"""How a delta becomes bytes: one codec, one file; one registry; one contract.

To add a codec: write ``codecs/<name>.py`` with a class that follows ``Codec``, name it in
``_CODECS``, add ``tests/codecs/test_<name>.py``, which inherits
``deltastore.testing.codecs.CodecContract``, and ``docs/codecs/<name>.md``.
"""

from __future__ import annotations

import importlib

from deltastore.codecs.contract import (
    Codec,
    Decoder,
    Encoder,
    Exactness,
    PaletteDecoder,
    PaletteEncoder,
)
from deltastore.errors import CodecUnknownError

_CODECS = {"exact": "deltastore.codecs.exact:ExactCodec"}


def codec_names() -> tuple[str, ...]:
    """Every codec this version can write, in alphabetical order."""
    return tuple(sorted(_CODECS))


def get_codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        CodecUnknownError: There is none.
    """
    if name not in _CODECS:
        raise CodecUnknownError(
            f"Codec {name!r} is not known; this deltastore has {', '.join(codec_names())}.",
            hint="Upgrade deltastore, or choose one of these with `--codec`.",
        )
    module, _, attribute = _CODECS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)()  # type: ignore[no-any-return]


__all__ = [
    "Codec",
    "Decoder",
    "Encoder",
    "Exactness",
    "PaletteDecoder",
    "PaletteEncoder",
    "codec_names",
    "get_codec",
]
