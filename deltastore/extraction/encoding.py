"""The heart of ``extract``: a plan and two checkpoints in, frames out, in one pass.

Threads take chunks in the table's order. Each reads its two sides, lets both tensors' BLAKE3
pass in order, subtracts, proves that base + Δ gives post back (what does not goes into the
restore patch), encodes, decodes what it encoded and compares, and hands the frame on.

What comes out depends on the plan and the weights alone: not on how many threads there are, nor
on whether one process encodes all chunks or several a range each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from deltastore.checkpoint import Weights
from deltastore.codecs import get_codec
from deltastore.execution.progress import Progress
from deltastore.execution.thread_pool import ReorderBuffer, ThreadPool, Turns
from deltastore.extraction.chunk import EncodedChunk, Row, encode_chunk
from deltastore.extraction.forms import Form, choose_form
from deltastore.extraction.plan import ExtractPlan
from deltastore.lineage.pairing import Chunk, Pair, chunk_count, chunks_of
from deltastore.manifest.format import DTYPE_BYTES


class Encoding:
    """Some of a plan's chunks, on their way from two open checkpoints to frames.

    A tensor's digest belongs to the range that has its last chunk: where that does not have its
    first one, what comes before is read and hashed as well.

    Args:
        plan: What is to be done.
        base: The weights before post-training.
        post: The weights after it.
        chunks: Numbers of the chunks, counted over all tensors in the plan's order; all if None.

    Raises:
        StructureMismatchError: The weights are not those that the plan was made for.
    """

    def __init__(
        self, plan: ExtractPlan, base: Weights, post: Weights, chunks: range | None = None
    ) -> None:
        plan.require(base, post)
        self._plan = plan
        self._base = base
        self._post = post
        self._codec = get_codec(plan.codec)
        self._chunks = range(plan.chunks) if chunks is None else chunks
        self._forms: dict[int, Form | None] = {}

    def choose_forms(self, pool: ThreadPool) -> int:
        """Choose the forms of all tensors that have chunks here; ``run`` does not read them anew.

        Returns:
            About how many bytes the streams of these tensors will have.

        Raises:
            CheckpointError: A side cannot be read.
        """
        rows = [(number, pair) for number, pair, _, own in self._rows() if own]
        sizes = dict.fromkeys((number for number, _ in rows), 0)

        def work(_: int, row: tuple[int, Pair]) -> None:
            number, pair = row
            self._forms[number], sizes[number] = self._form(pair)

        pool.run(rows, work)
        return sum(sizes.values())

    def run(
        self, sink: Callable[[EncodedChunk], object], pool: ThreadPool, progress: Progress
    ) -> None:
        """Encode the chunks.

        Args:
            sink: Is called with each, in order, by one thread at a time.
            pool: Whose threads do it.
            progress: Who is told of the bytes that are read.

        Raises:
            RestoreFailedError: What was encoded does not decode to the same delta.
            CheckpointError: A checkpoint cannot be read.
        """

        def put(result: EncodedChunk | None) -> None:
            if result is not None:
                sink(result)

        in_order = ReorderBuffer(pool, put)

        def work(sequence: int, task: tuple[Row, Chunk, int, bool, bool]) -> None:
            row, chunk, turn, last, wanted = task
            in_order.wait_for_room(sequence)
            result = encode_chunk(self._base, self._post, row, chunk, turn, last=last)
            in_order.put(sequence, result if wanted else None)
            progress.advance(_bytes_read(row.pair, chunk))

        pool.run(self._tasks(pool), work)

    def _rows(self) -> Iterator[tuple[int, Pair, int, range]]:
        """Each row's number, pair and chunks, and which of these are to be encoded here."""
        first = 0
        for number, pair in enumerate(self._plan.tensors):
            count = chunk_count(pair, self._plan.chunk)
            start, stop = (min(max(end - first, 0), count) for end in _ends(self._chunks))
            yield number, pair, count, range(start, stop)
            first += count

    def _tasks(self, pool: ThreadPool) -> Iterator[tuple[Row, Chunk, int, bool, bool]]:
        """Row, chunk and turn; whether it is the row's last; whether its frame is wanted."""
        for number, pair, count, own in self._rows():
            if not own:
                continue
            hashed = own.stop == count
            form = self._forms.pop(number) if number in self._forms else self._form(pair)[0]
            row = Row(number, pair, form, Turns(pool), hashed)
            for index, chunk in enumerate(chunks_of(pair, self._plan.chunk)):
                if index in own:
                    yield row, chunk, index, index == count - 1, True
                elif hashed:
                    yield row, chunk.skimmed(), index, False, False

    def _form(self, pair: Pair) -> tuple[Form | None, int]:
        return choose_form(self._base, self._post, pair, self._codec)


def _ends(chunks: range) -> tuple[int, int]:
    return chunks.start, chunks.stop


def _bytes_read(pair: Pair, chunk: Chunk) -> int:
    sides = ((chunk.base, pair.base), (chunk.post, pair.post))
    return sum(
        chunk.count * DTYPE_BYTES[tensor.dtype]
        for used, tensor in sides
        if used and tensor is not None
    )
