"""Artifacts made up for tests: valid documents over parts that hold nothing meaningful."""

from __future__ import annotations

import hashlib
from pathlib import Path

from deltastore.digest import content_digest, fingerprint, sha256_digest
from deltastore.manifest import (
    Config,
    Descriptor,
    FileEntry,
    Manifest,
    SampleRun,
    Segment,
    SourceModel,
    Stream,
    TensorEntry,
    TensorSide,
    config_bytes,
)
from deltastore.manifest import format as fmt
from deltastore.store import Published, Store

LABELS = {"base": "org/base", "post": "org/post"}


def put_artifact(
    store: Store, seed: int = 0, *, parts: int = 2, part_bytes: int = 3000, codec: str = "exact"
) -> tuple[Manifest, Config]:
    """Put the blobs of an artifact, which only differs by ``seed``; not the config."""
    table = _tensors(seed, parts)
    layers = [
        _put(store, fmt.TENSORS_MEDIA_TYPE, noise(f"part {seed} {i}", part_bytes))
        for i in range(parts)
    ]
    layers.append(_put(store, fmt.SAMPLES_MEDIA_TYPE, noise("samples", 8)))
    # The same in every artifact, so that they share a blob.
    layers.append(_put(store, fmt.FILE_MEDIA_TYPE, b"{{ messages }}", title="post/chat.jinja"))
    config = Config(
        codec=codec,
        exactness="exact",
        chunk=fmt.CHUNK_ELEMENTS,
        base=_source("org/base", [(e.name, e.base) for e in table if e.base]),
        post=_source("org/post", [(e.name, e.post) for e in table if e.post]),
        tensors=table,
        parts=parts,
        samples=(SampleRun(0, 4, 4),),
        files=(FileEntry("post", "chat.jinja", parts + 1),),
    )
    data = config_bytes(config)
    descriptor = Descriptor(fmt.CONFIG_MEDIA_TYPE, sha256_digest(data), len(data))
    return Manifest(descriptor, tuple(layers)), config


def publish(
    store: Store, name: str = "model", seed: int = 0, *, tags: tuple[str, ...] = (), parts: int = 2
) -> Published:
    """Make up an artifact and publish it."""
    manifest, config = put_artifact(store, seed, parts=parts)
    return store.publish(manifest, config, name=name, labels=LABELS, tags=tags)


def noise(what: str, count: int) -> bytes:
    """Bytes that depend on ``what`` alone."""
    return hashlib.shake_128(what.encode()).digest(count)


def flip(path: Path, position: int = 0) -> None:
    """Damage a blob by one bit; it keeps its size."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def _put(store: Store, media_type: str, data: bytes, *, title: str | None = None) -> Descriptor:
    blob = store.blobs.put([data])
    return Descriptor(media_type, blob.digest, blob.size, title)


def _tensors(seed: int, parts: int) -> tuple[TensorEntry, ...]:
    def side(what: str, *shape: int) -> TensorSide:
        return TensorSide("BF16", shape, hashlib.sha256(what.encode()).hexdigest())

    def stream(part: int) -> Stream:
        return Stream("exact", {}, (Segment(part, 0, 1),), 1000)

    return (
        TensorEntry(
            name="a.weight",
            kind="delta",
            base=side("a", 4, 8),
            post=side(f"a{seed}", 4, 8),
            delta=stream(0),
            changed=30,
            l2=0.5,
            base_l2=2.0,
        ),
        TensorEntry("b.weight", "added", None, side(f"b{seed}", 8), values=stream(parts - 1)),
        TensorEntry("c.weight", "removed", side("c", 2), None),
        TensorEntry("d.weight", "unchanged", side("d", 16), side("d", 16)),
    )


def _source(repo: str, sides: list[tuple[str, TensorSide]]) -> SourceModel:
    return SourceModel(
        content=content_digest((name, s.dtype, s.shape, s.blake3) for name, s in sides),
        fingerprint=fingerprint((name, s.shape) for name, s in sides),
        nbytes=sum(s.nbytes for _, s in sides),
        parameters=sum(s.elements for _, s in sides),
        repo=repo,
        revision="0" * 40,
    )
