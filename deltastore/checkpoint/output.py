"""A directory that appears whole or not at all: an output checkpoint, or an export.

Where nothing is yet, it is put together beside its place and renamed into it. Where an empty
directory is, that one is filled: it may be somebody's, a mount, or where the user stands. ``lease``
has the first way, ``filling`` the second.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from deltastore.checkpoint import filling
from deltastore.checkpoint.destination import check_place, in_the_way
from deltastore.checkpoint.files import file_error
from deltastore.checkpoint.lease import (
    FILLED,
    Partial,
    create_partial,
    deliver,
    discard,
    hold_output,
    new_name,
    remove_dead_partials,
    remove_partial,
)
from deltastore.errors import CheckpointError
from deltastore.system import steps
from deltastore.system.directory import Directory, hold_or_make, unmake
from deltastore.system.steps import OutputStep
from deltastore.text import typed


def remove_dead(place: Path) -> None:
    """Remove what dead processes of this user left of earlier attempts at an output."""
    filling.settle_dead(place)
    remove_dead_partials(place)


class Output:
    """An output in the making; a context manager that removes everything if it was not delivered.

    Attributes:
        path: Where it will be.
        fills: Whether a directory is there, which is filled.
    """

    def __init__(self, place: Path) -> None:
        """Make the directory in which it is put together.

        Args:
            place: Where it will be, as ``resolved`` says.

        Raises:
            OutputExistsError: Something is there already.
            NoSpaceError: The file system is full.
            CheckpointError: This user cannot write there.
        """
        self.path = place
        self._ended = False
        # What an abort removes again.
        self._made: list[tuple[Directory, Directory]] = []
        self._parent: Directory | None = None
        self._partial: Partial | None = None
        remove_dead(place)
        self.fills = check_place(place)
        self._name = new_name(FILLED if self.fills else place.name)
        try:
            if self.fills:
                self._parent = hold_output(place)
                self._partial = create_partial(self._parent, FILLED, self._name)
            else:
                self._parent, self._made = hold_or_make(place.parent)
                self._partial = create_partial(self._parent, place.name, self._name)
        except OSError as error:
            self.abort()
            raise file_error(error, place, "create") from error
        except BaseException:
            self.abort()
            raise

    @property
    def directory(self) -> Directory:
        """Where it is put together.

        Raises:
            ValueError: It has been delivered, or aborted.
        """
        if self._ended or self._partial is None:
            raise ValueError("the output is closed")
        return self._partial.directory

    def deliver(self, last: Sequence[str], *, fsync: bool = False) -> None:
        """Have it appear in its place.

        Args:
            last: The names in it that appear last, where they have to appear one by one.
            fsync: Also make sure that its names survive a power cut; ``directory.sync`` does that
                for what is in it.

        Raises:
            OutputExistsError: Something has appeared at its place in the meantime.
            NoSpaceError: The file system is full.
            CheckpointError: It cannot be renamed, or somebody has put something else in its place.
        """
        assert self._partial is not None
        with self._translated():
            if self.fills:
                filling.fill(self._partial, last, sync=fsync)
                self._ended = True
                remove_partial(self._partial)
                self._require_place()
                steps.reached(OutputStep.DONE)
            else:
                deliver(self._partial, self.path.name)
                self._ended = True
                if fsync:
                    self._partial.parent.sync()
        self._let_go()

    def abort(self) -> None:
        """Remove everything; without effect once it is delivered, or aborted."""
        if self._ended:
            return
        self._ended = True
        if self._partial is not None:
            if self.fills:
                filling.settle(self._partial)
            remove_partial(self._partial)
        elif self._parent is not None:
            # An interruption may have come when it was made and not yet here.
            discard(self._parent, self._name)
        unmake(self._made)
        self._let_go()

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def _require_place(self) -> None:
        """What was filled must be what is at the place, and not what was there before."""
        assert self._parent is not None
        if not os.path.samestat(self.path.lstat(), os.fstat(self._parent.descriptor)):
            reason = f"another process or user put something else in the place of {self.path}"
            raise OSError(errno.ESTALE, reason, str(self.path))

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what the system says into the errors of an output."""
        place = self.path
        try:
            yield
        except OSError as error:
            if error.errno == errno.ESTALE:
                raise CheckpointError(
                    f"{place} was not written: {error.strerror}.",
                    hint="Give a directory for the output in one where nobody else may write: "
                    f"`ls -ld {typed(place.parent)}` shows who may.",
                    path=str(place),
                ) from error
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                what = "was filled by somebody else" if self.fills else "appeared"
                raise in_the_way(place, f"{what} while it was being written") from error
            raise file_error(error, place, "write") from error

    def _let_go(self) -> None:
        if self._partial is not None:
            self._partial.close()
        if self._parent is not None:
            self._parent.close()
        for directory in chain.from_iterable(self._made):
            directory.close()
