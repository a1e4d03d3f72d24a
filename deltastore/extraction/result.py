"""What ``extract`` and ``compose`` made, and what they say of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Self

from deltastore.checkpoint.index import listed
from deltastore.digest import sha256_digest
from deltastore.execution.progress import Progress
from deltastore.extraction.reuse import Wanted, reusable
from deltastore.manifest import Config, Manifest, manifest_bytes
from deltastore.store import Published, Store


@dataclass(frozen=True, slots=True)
class Made:
    """An artifact of a pair, before it has a name.

    Attributes:
        manifest: Its manifest.
        config: Its config.
        reused: Whether it was in the store already.
        cosine: Post's to base, as measured.
        resumed_bytes: Of its tensor parts, those that were in the store already.
    """

    manifest: Manifest
    config: Config
    reused: bool = False
    cosine: float | None = None
    resumed_bytes: int = 0

    def or_stored(self, store: Store, codec: str, wanted: Wanted) -> Made:
        """The same pair that another version of deltastore has encoded, or else this one.

        What is stored stays what it was. That this user made the pair is remembered.

        Args:
            store: Where it may be.
            codec: By which both were encoded.
            wanted: What both must have in common.
        """
        config = self.config
        store.remember_made(config, sha256_digest(manifest_bytes(self.manifest)))
        stored = store.find_made(config.base.content, config.post.content, codec)
        found = reusable(store, stored, wanted)
        return self if found is None else Made(*found, reused=True, cosine=self.cosine)


@dataclass(frozen=True, slots=True)
class ExtractResult:
    """What ``extract`` did.

    Attributes:
        name: The artifact's name.
        version: Its version of that name.
        digest: The manifest's digest.
        codec: The codec.
        raw_bytes: Bytes of post's tensors.
        stored_bytes: Bytes of the manifest and all blobs.
        bits_per_weight: 8 x bytes of the tensor parts over the elements of all post tensors.
        tensors: Rows of the tensor table.
        unchanged: How many of them are equal in base and post.
        patched: How many carry a restore patch.
        reused: Whether the artifact was in the store already.
        resumed_bytes: Of the tensor parts of a new artifact, those that were in the store already,
            stored by a run that was stopped, or in common with another artifact; they were
            compared, not written again.
        relative_change: |post - base| / |base| over the tensors that changed; None if none did.
        cosine: Mean cosine between base's and post's matrices at the lineage samples; None where
            nothing was compared.
        not_stored: What lies beside the weights of each side and is not in the artifact: ``side``,
            ``name`` and ``why``.
        seconds: Wall time.
    """

    name: str
    version: int
    digest: str
    codec: str
    raw_bytes: int
    stored_bytes: int
    bits_per_weight: float
    tensors: int
    unchanged: int
    patched: int
    reused: bool
    resumed_bytes: int
    relative_change: float | None
    cosine: float | None
    not_stored: list[dict[str, str]]
    seconds: float

    @classmethod
    def of(cls, published: Published, made: Made, started: float, **more: Any) -> Self:
        """The result of what was just published.

        Args:
            published: The version.
            made: What was published.
            started: When the work began, by the monotonic clock.
            **more: What a further result says besides, and what was not stored.
        """
        manifest, config = made.manifest, made.config
        reused = made.reused or published.reused
        return cls(
            name=published.name,
            version=published.version,
            digest=published.digest,
            codec=config.codec,
            raw_bytes=config.post.nbytes,
            stored_bytes=published.stored_bytes,
            bits_per_weight=config.bits_per_weight(manifest),
            tensors=len(config.tensors),
            unchanged=sum(entry.kind == "unchanged" for entry in config.tensors),
            patched=sum(entry.patch is not None for entry in config.tensors),
            reused=reused,
            resumed_bytes=0 if reused else made.resumed_bytes,
            relative_change=_relative_change(config),
            cosine=made.cosine,
            seconds=time.monotonic() - started,
            **more,
        )

    @property
    def ref(self) -> str:
        """The ref that means just this version."""
        return f"{self.name}:v{self.version}"


def _relative_change(config: Config) -> float | None:
    """|post - base| / |base|, over the tensors that have a delta."""
    changed = [entry for entry in config.tensors if entry.delta is not None]
    moved = math.fsum(entry.l2**2 for entry in changed)
    source = math.fsum(entry.base_l2**2 for entry in changed)
    return math.sqrt(moved / source) if source else None


def tell_not_stored(config: Config, progress: Progress) -> None:
    """Say what lies beside post and is not in its artifact."""
    if config.not_stored:
        names = listed(list(config.not_stored))
        progress.warn(f"Beside the weights of post and not stored: {names}.")
