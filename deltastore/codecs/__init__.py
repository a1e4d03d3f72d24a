"""How a delta becomes bytes: one codec, one file; one registry; one contract.

To add a codec, follow ``docs/codecs/writing.md``. One of deltastore's own is named in
``codecs/registry.py`` and has a page of its own, ``docs/codecs/<name>.md``.
"""

from deltastore.codecs.contract import (
    BoundedEncoder,
    Codec,
    Decoder,
    Encoder,
    Exactness,
    PaletteDecoder,
    PaletteEncoder,
)
from deltastore.codecs.registry import codec_names, get_codec, register_codec, stored_codec

__all__ = [
    "BoundedEncoder",
    "Codec",
    "Decoder",
    "Encoder",
    "Exactness",
    "PaletteDecoder",
    "PaletteEncoder",
    "codec_names",
    "get_codec",
    "register_codec",
    "stored_codec",
]
