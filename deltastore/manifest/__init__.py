"""The artifact as documents: OCI manifest, config blob, limits and media types.

``docs/format.md`` is the normative specification; this package is its reader and writer.
"""

from deltastore.manifest.model import (
    Config,
    DeltaError,
    Descriptor,
    FileEntry,
    Manifest,
    SampleRun,
    Segment,
    SourceModel,
    Stream,
    TensorEntry,
    TensorKind,
    TensorSide,
)
from deltastore.manifest.parse import parse_config, parse_manifest
from deltastore.manifest.serialise import config_bytes, manifest_bytes

__all__ = [
    "Config",
    "DeltaError",
    "Descriptor",
    "FileEntry",
    "Manifest",
    "SampleRun",
    "Segment",
    "SourceModel",
    "Stream",
    "TensorEntry",
    "TensorKind",
    "TensorSide",
    "config_bytes",
    "manifest_bytes",
    "parse_config",
    "parse_manifest",
]
