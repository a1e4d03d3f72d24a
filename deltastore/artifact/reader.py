"""Encoded streams of one artifact as chunks of deltas and values."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from deltastore.artifact.parts import PartsReader, StreamReader
from deltastore.blobs import BlobReader, BlobStore, FileBlobs
from deltastore.blobs.passing import PassingDigest, PassingReader, Room
from deltastore.codecs import Decoder, PaletteDecoder, stored_codec
from deltastore.codecs.values import CODEC as VALUES
from deltastore.codecs.values import decode_patch, decode_values
from deltastore.errors import CodecUnknownError, FormatError, IntegrityError, PartInvalidError
from deltastore.kernels.palette import Tokens
from deltastore.manifest import Config, Descriptor, Manifest, Stream, TensorEntry
from deltastore.manifest.format import DTYPE_BYTES, KEEP, KEEP_WIDE
from deltastore.store import Store

Bytes = npt.NDArray[np.uint8]


_NOTHING = np.empty(0, np.uint8)


@contextmanager
def blaming(refs: Sequence[str]) -> Iterator[None]:
    """Say of a damaged or unreadable blob which artifact it belongs to."""
    try:
        yield
    except (IntegrityError, FormatError) as error:
        if not refs:
            raise
        message = f"{error.message} It was read for {', '.join(refs)}."
        raise type(error)(message, hint=error.hint, **error.facts, refs=list(refs)) from error


def open_artifact(store: Store, digest: str) -> ArtifactReader:
    """A stored artifact; its parts are opened as they are needed.

    Raises:
        IntegrityError: Its manifest or config is missing or damaged.
        FormatError: One of them breaks the format, or is of a newer one.
    """
    return ArtifactReader(store.blobs, *store.load(digest))


def _require_plain(stream: Stream, where: str) -> None:
    if stream.codec != VALUES:
        raise CodecUnknownError(
            f"{where} is encoded by {stream.codec!r}; this deltastore reads {VALUES!r} there.",
            hint="Upgrade deltastore: `pip install -U deltastore`.",
        )


@cache
def _reads_palettes(kind: type[Decoder]) -> bool:
    """Python takes 20 microseconds to say it, and each of a hundred thousand tensors asks."""
    return issubclass(kind, PaletteDecoder)


class _Opened:
    """A stream that is being read, and its decoder once that is wanted; ``lock`` to make it."""

    def __init__(self, frames: StreamReader) -> None:
        self.frames = frames
        self.decoder: Decoder | None = None
        self.lock = threading.Lock()


class ArtifactReader:
    """The tensors of one stored artifact. Thread-safe."""

    def __init__(self, blobs: BlobStore, manifest: Manifest, config: Config) -> None:
        self.manifest = manifest
        self.config = config
        self._blobs = blobs
        self.parts = manifest.layers[: config.parts]
        self._passing: dict[str, PassingDigest] = {}
        self._parts = PartsReader(self.parts, self._open_part)
        self._lock = threading.Lock()
        self._streams: dict[str, _Opened] = {}
        self._last = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all parts."""
        self._parts.close()

    def check(self) -> None:
        """Compare every part with its digest.

        Raises:
            IntegrityError: One is missing or damaged.
        """
        for layer in self.parts:
            self.check_part(layer)

    def take_digests(self) -> bool:
        """Have the digests of parts be taken of what is read of them from now on, if that pays.

        ``check_part`` then reads only what was not. Of files the second read is one of the page
        cache: it costs less than holding what comes early.

        Returns:
            Whether they are taken so.
        """
        if isinstance(self._blobs, FileBlobs):
            return False
        room = Room()
        for part in self.parts:
            self._passing[part.digest] = PassingDigest(part.digest, part.size, room)
        return True

    def check_part(self, part: Descriptor) -> None:
        """Compare one of ``parts`` with its digest.

        Raises:
            IntegrityError: It is missing or damaged.
        """
        passing = self._passing.get(part.digest)
        if passing is None:
            self._blobs.check(part.digest, part.size)
            return
        with self._blobs.open(part.digest, part.size) as reader:
            passing.finish(reader)

    def _open_part(self, part: Descriptor) -> BlobReader | PassingReader:
        reader = self._blobs.open(part.digest, part.size)
        if isinstance(self._blobs, FileBlobs):
            return reader
        return PassingReader(reader, part.digest, self._passing)

    def delta(self, entry: TensorEntry, start: int, out: npt.NDArray[Any]) -> None:
        """Overwrite ``out`` with the deltas of elements ``start .. start + out.size``.

        Shapes:
            out: ``[n]``, uint64 if the entry is wide, else uint32.

        Raises:
            PartInvalidError: The part breaks the specification.
        """
        assert entry.delta is not None
        key = f"{entry.name}/delta"
        try:
            frames, decoder = self._open(key, entry.delta, with_decoder=True)
            assert decoder is not None
            keep = KEEP_WIDE if entry.wide else KEEP

            def decode(frame: bytes, piece: npt.NDArray[Any]) -> None:
                if frame:
                    decoder.decode(frame, piece)
                else:
                    piece[:] = keep

            self._read(frames, start, entry.common_elements, out, decode, key)
        except PartInvalidError:
            self._blame(entry.delta)
            raise

    def filled(self, entry: TensorEntry) -> npt.NDArray[np.int64]:
        """The chunks of a delta whose frames are not empty, ascending: others change nothing.

        Raises:
            PartInvalidError: The part breaks the specification.
        """
        assert entry.delta is not None
        try:
            return self._parts.stream(f"{entry.name}/delta", entry.delta).filled()
        except PartInvalidError:
            self._blame(entry.delta)
            raise

    def tokens(self, entry: TensorEntry, start: int, count: int) -> Tokens | None:
        """The same deltas as palette tokens, valid until the thread's next chunk.

        None where they are not one frame of tokens; ``delta`` takes any.

        Raises:
            PartInvalidError: The part breaks the specification.
        """
        assert entry.delta is not None
        index, rest = divmod(start, self.config.chunk)
        if entry.wide or rest or count != min(self.config.chunk, entry.common_elements - start):
            return None
        try:
            frames, decoder = self._open(f"{entry.name}/delta", entry.delta, with_decoder=True)
            assert decoder is not None
            if not _reads_palettes(type(decoder)):
                return None
            frame = frames.frame(index)
            return cast("PaletteDecoder", decoder).tokens(frame, count) if frame else None
        except PartInvalidError:
            self._blame(entry.delta)
            raise

    def values(self, entry: TensorEntry, start: int, out: Bytes) -> None:
        """Overwrite ``out`` with the bytes of values from element ``start`` of the stream on.

        Raises:
            PartInvalidError: The part breaks the specification.
        """
        assert entry.values is not None
        assert entry.post is not None
        _require_plain(entry.values, f"{entry.name}/values")
        size = DTYPE_BYTES[entry.post.dtype]
        frames, _ = self._open(f"{entry.name}/values", entry.values, with_decoder=False)
        where = f"{entry.name}/values"

        def decode(frame: bytes, piece: npt.NDArray[Any]) -> None:
            decode_values(frame, size, piece.view(np.uint8), where=where)

        total = entry.post.elements - entry.common_elements
        if entry.kind in ("added", "replaced"):
            total = entry.post.elements
        try:
            self._read(frames, start, total, out.view(f"u{size}"), decode, where)
        except PartInvalidError:
            self._blame(entry.values)
            raise

    def patch(self, entry: TensorEntry, start: int, out: Bytes) -> int:
        """Overwrite the elements that have a restore patch; ``start`` is a chunk's start.

        Returns:
            How many elements were overwritten.

        Raises:
            PartInvalidError: The part breaks the specification.
        """
        assert entry.patch is not None
        assert entry.post is not None
        _require_plain(entry.patch, f"{entry.name}/patch")
        size = DTYPE_BYTES[entry.post.dtype]
        frames, _ = self._open(f"{entry.name}/patch", entry.patch, with_decoder=False)
        elements = out.size // size
        try:
            frame = frames.frame(start // self.config.chunk)
            if not frame:
                return 0
            where = f"{entry.name}/patch"
            positions, values = decode_patch(frame, size, elements, where=where)
        except PartInvalidError:
            self._blame(entry.patch)
            raise
        out.view(f"u{size}")[positions] = values.view(f"u{size}")
        return positions.size

    def _blame(self, stream: Stream) -> None:
        """Of a part that cannot be decoded, say that it is a damaged blob, if it is.

        Raises:
            BlobCorruptError: One of the stream's parts does not have its digest.
            BlobMissingError: One of them is not there.
        """
        for segment in stream.segments:
            self.check_part(self.manifest.layers[segment.part])

    def _open(
        self, key: str, stream: Stream, *, with_decoder: bool
    ) -> tuple[StreamReader, Decoder | None]:
        found = self._streams.get(key)
        if found is None:
            with self._lock:
                found = self._streams.get(key)
                if found is None:
                    if len(self._streams) > 64:  # tensors come one after the other
                        self._streams.clear()
                    found = self._streams[key] = _Opened(self._parts.stream(key, stream))
        if with_decoder and found.decoder is None:
            with found.lock:  # reads: threads at other tensors do not wait for it
                if found.decoder is None:
                    codec = stored_codec(stream.codec, where=key)
                    found.decoder = codec.decoder(stream.params, found.frames.arrays(), where=key)
        return found.frames, found.decoder

    def _whole(
        self, key: str, index: int, elements: int, dtype: np.dtype[Any]
    ) -> npt.NDArray[Any] | None:
        """The frame that this thread decoded last, if it is this one."""
        last: tuple[str, int, npt.NDArray[Any]] = getattr(self._last, "frame", ("", 0, _NOTHING))
        same = last[:2] == (key, index) and (last[2].size, last[2].dtype) == (elements, dtype)
        return last[2] if same else None

    def _read(
        self,
        frames: StreamReader,
        start: int,
        total: int,
        out: npt.NDArray[Any],
        decode: Callable[[bytes, npt.NDArray[Any]], None],
        key: str,
    ) -> None:
        """Fill ``out`` from the frames that cover it, whole ones straight into place.

        Of a frame that is wanted in part the rest is most likely wanted next, by the same thread.
        """
        chunk = self.config.chunk
        stop = start + out.size
        for index in range(start // chunk, -(-stop // chunk)):
            begin = index * chunk
            end = min(begin + chunk, total)
            if start <= begin and end <= stop:
                decode(frames.frame(index), out[begin - start : end - start])
                continue
            whole = self._whole(key, index, end - begin, out.dtype)
            if whole is None:
                whole = np.empty(end - begin, out.dtype)
                decode(frames.frame(index), whole)
                self._last.frame = (key, index, whole)
            low, high = max(start, begin), min(stop, end)
            out[low - start : high - start] = whole[low - begin : high - begin]
