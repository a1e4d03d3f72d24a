"""Manifest and config to bytes: canonical JSON, so that equal records have equal digests."""

from __future__ import annotations

from typing import Any

from deltastore.digest import canonical_json
from deltastore.manifest.format import ARTIFACT_TYPE, MANIFEST_MEDIA_TYPE, TITLE_ANNOTATION
from deltastore.manifest.model import (
    Config,
    Descriptor,
    Manifest,
    SourceModel,
    Stream,
    TensorEntry,
    TensorSide,
)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest's bytes; their sha256 is the artifact's digest."""
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_MEDIA_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": _descriptor(manifest.config),
            "layers": [_descriptor(layer) for layer in manifest.layers],
        }
    )


def config_bytes(config: Config) -> bytes:
    """The config blob's bytes."""
    document = {
        "format": config.format,
        "codec": config.codec,
        "exactness": config.exactness,
        "chunk": config.chunk,
        "restore_only": config.restore_only,
        "base": _source(config.base),
        "post": _source(config.post),
        "parts": config.parts,
        "tensors": [_tensor(entry) for entry in config.tensors],
        "samples": [[run.tensor, run.start, run.count] for run in config.samples],
        "files": [
            {"side": entry.side, "path": entry.path, "layer": entry.layer} for entry in config.files
        ],
    }
    if config.not_stored:
        document["not_stored"] = list(config.not_stored)
    return canonical_json(document)


def _descriptor(descriptor: Descriptor) -> dict[str, Any]:
    document: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.title is not None:
        document["annotations"] = {TITLE_ANNOTATION: descriptor.title}
    return document


def _source(source: SourceModel) -> dict[str, Any]:
    return {
        "content": source.content,
        "fingerprint": source.fingerprint,
        "nbytes": source.nbytes,
        "parameters": source.parameters,
        "repo": source.repo,
        "revision": source.revision,
    }


def _tensor(entry: TensorEntry) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": entry.name,
        "kind": entry.kind,
        "base": _side(entry.base),
        "post": _side(entry.post),
    }
    if entry.base_name is not None:
        document["base_name"] = entry.base_name
    for role in ("delta", "values", "patch"):
        stream: Stream | None = getattr(entry, role)
        if stream is not None:
            document[role] = _stream(stream)
    if entry.delta is not None:
        document |= {"changed": entry.changed, "l2": entry.l2, "base_l2": entry.base_l2}
    if entry.error is not None:
        document["error"] = {"l2": entry.error.l2, "max": entry.error.max}
    return document


def _side(side: TensorSide | None) -> dict[str, Any] | None:
    if side is None:
        return None
    return {"dtype": side.dtype, "shape": list(side.shape), "blake3": side.blake3}


def _stream(stream: Stream) -> dict[str, Any]:
    return {
        "codec": stream.codec,
        "params": stream.params,
        "segments": [[s.part, s.first, s.frames] for s in stream.segments],
        "bytes": stream.stored_bytes,
    }
