"""Constants of format version 1: media types, limits, dtypes, reserved delta values.

Limits are part of the format: a reader refuses what exceeds them before it allocates.
"""

from __future__ import annotations

FORMAT_VERSION = 1

MANIFEST_MEDIA_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.deltastore.delta.v1"
CONFIG_MEDIA_TYPE = "application/vnd.deltastore.config.v1+json"
TENSORS_MEDIA_TYPE = "application/vnd.deltastore.tensors.v1+safetensors"
SAMPLES_MEDIA_TYPE = "application/vnd.deltastore.samples.v1"
FILE_MEDIA_TYPE = "application/vnd.deltastore.file.v1"
TITLE_ANNOTATION = "org.opencontainers.image.title"

MAX_MANIFEST_BYTES = 16 << 20
MAX_CONFIG_BYTES = 256 << 20
MAX_SMALL_FILE_BYTES = 64 << 20
MAX_SMALL_FILES_BYTES = 256 << 20
"""All small files together, each counted as often as it is named: they are read into memory."""

MAX_NOT_STORED = 1000
"""Names of what lay beside post and is not in the artifact."""

MAX_TOTAL_BYTES = 1 << 62
"""All layers together; what is beyond fits no database's integer."""

MAX_JSON_DEPTH = 64
MAX_LAYERS = 100_000
MAX_TENSORS = 250_000
MAX_NAME_CHARS = 1024
MAX_CODEC_CHARS = 64
MAX_DIMENSIONS = 16
MAX_ELEMENTS = 1 << 48
MIN_CHUNK_ELEMENTS = 1 << 10
MAX_CHUNK_ELEMENTS = 1 << 24
MAX_SEGMENTS = 1_000_000

MAX_DOCUMENT_MEMORY = 5 << 28
"""About what a document of an artifact may take once parsed: 250,000 tensors of any kind."""

MAX_JSON_MEMORY = 64 << 20
"""About what a JSON document of a checkpoint may take once parsed: 600,000 values."""

MAX_TOKENIZER_MEMORY = 400 << 20
"""The same of one that lists a vocabulary: a million tokens and as many merges."""


CHUNK_ELEMENTS = 1 << 19
"""Elements per frame that this version writes; a reader takes any power of two in the limits."""

PART_BYTES = 64 << 20
"""A part is closed when its frames reach this many bytes."""

MAX_SAMPLE_RUNS = 256
MAX_SAMPLE_TENSORS = 64
MAX_SAMPLE_BYTES = 64 << 10

DTYPE_BYTES: dict[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}
"""Bytes per element by safetensors dtype name."""

NARROW_DTYPES = frozenset({"BF16", "F16", "F8_E4M3", "F8_E5M2"})
"""Deltas of these are float32 differences, applied in float32."""

WIDE_DTYPES = frozenset({"F32", "F64"})
"""Deltas that touch one of these are float64 differences, applied in float64."""

DELTA_DTYPES = NARROW_DTYPES | WIDE_DTYPES
"""Dtypes between which a delta has a meaning; all others travel as values."""

KEEP = 0x7FFF0000
"""Reserved float32 bits (a NaN) that mean "equal bits in base and post: leave untouched".

A delta of -0.0 or +0.0 would not do: x + 0.0 turns -0.0 into +0.0, and 0 times -1 is -0.0.
"""

ESCAPE_HIGH = 0x7FFE
"""Reserved bfloat16 bits: "the exact delta stands in the escape planes"."""

ESCAPE = 0x7FFE0000
"""Reserved float32 bits, ditto, where symbols are float32."""

CANONICAL_NAN = 0x7FC00000
"""The float32 bits of every delta that is no number; restoring such an element takes a patch."""

CANONICAL_NAN_WIDE = 0x7FF8000000000000
"""Ditto in float64 delta chunks."""

KEEP_WIDE = 0x7FFFE00000000000
"""``KEEP`` widened to float64 bits: the mark in float64 delta chunks."""
