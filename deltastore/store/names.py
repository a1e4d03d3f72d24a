"""The files under ``names/``: which versions and tags there are.

They are the truth; the catalog only follows them.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from deltastore.blobs import durable
from deltastore.blobs.regular import read_regular
from deltastore.catalog import Record
from deltastore.errors import (
    BlobMissingError,
    ManifestInvalidError,
    RefSyntaxError,
    StoreClosedError,
    StoreError,
)
from deltastore.refs import MAX_VERSION, parse_version, validate_name, validate_tag
from deltastore.store import records
from deltastore.store.records import Tag, Tombstone
from deltastore.system.directory import Place
from deltastore.system.permission import closed, described
from deltastore.text import typed

_MAX_STAMP_CHARS = 4096
_MAX_FILES_CHARS = 512 << 10
_NOTHING = "-"
_WIDE_GAP = 1000
"""Versions. Records are lost one by one, or with the last copy; so many were never there."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the system says of a name's directory and files, without reading any.

    Attributes:
        files: What is looked at besides the directory itself: paths in it, with spaces between.
        stamp: Inode, times and size of each; it changes with every change of theirs.
        newest_ns: The last of their times, in nanoseconds on the file server's clock.
    """

    files: str
    stamp: str
    newest_ns: int


@dataclass(frozen=True, slots=True)
class Irregular:
    """A path at which something is missing, or is nothing that this version makes.

    Attributes:
        path: Where.
        problem: What is wrong, as the end of a sentence that begins with the path.
        way: What to do about it, as a hint.
    """

    path: Path
    problem: str
    way: str


class Names:
    """Names, versions and tags as files.

    Creating a version is exclusive and atomic, across processes and machines; so is replacing a
    tag or making a record a tombstone. After a crash each file is whole, new or old. Errors of the
    system become StoreReadOnlyError, NoSpaceError or StoreError.

    Args:
        directory: Holds one directory per name.
        temp: Where files are written first; on the same file system.
    """

    def __init__(self, directory: Path, temp: Path) -> None:
        self._directory = directory
        self._temp = temp
        self._place = Place(directory)

    def all(self) -> list[str]:
        """All names that have a directory, sorted. What cannot be a name is passed over."""
        entries = _entries(self._place)
        return self.valid(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def valid(self, entries: Iterable[str]) -> list[str]:
        """Those that can be names, sorted."""
        found = []
        for entry in entries:
            with contextlib.suppress(RefSyntaxError):
                found.append(validate_name(entry))
        return sorted(found)

    def same_but_for_case(self, name: str) -> str | None:
        """Another name that a file system which ignores case could not tell from ``name``."""
        # os.path, as Path's raises an error of what may not be looked at.
        if os.path.isdir(self._directory / name):  # noqa: PTH112
            names = {entry.name for entry in _entries(self._place)}
            if name in names:
                return None
        folded = name.casefold()
        for entry in _entries(self._place):
            if entry.name != name and entry.name.casefold() == folded:
                return entry.name
        return None

    def versions(self, name: str) -> list[int]:
        """The numbers used so far, tombstones included, in order."""
        return _versions(entry.name for entry in _entries(self._place.within(name)))

    def entries(self) -> set[str]:
        """What is in the directory of the names, whether it can be one or not."""
        return {entry.name for entry in _entries(self._place)}

    def stamp(self, name: str, files: str) -> str:
        """What a name and these files of it look like now: see ``Look``."""
        # Thousands are looked at on every open, so that this is written for speed.
        directory = f"{self._directory}{os.sep}{name}"
        text = _stamp(directory)
        for file in files.split():
            text = f"{text} {_stamp(f'{directory}{os.sep}{file}')}"
        return text if len(text) <= _MAX_STAMP_CHARS else sha256(text.encode()).hexdigest()

    def look(self, name: str) -> Look | None:
        """Look at a name; None where there is none."""
        directory = self._directory / name
        try:
            if not stat.S_ISDIR(directory.lstat().st_mode):
                return None
        except OSError:
            return None
        # A file that comes while they are listed changes its directory's time, so that the
        # directories are looked at before.
        above = _stamp(str(directory)), _stamp(str(directory / "tags"))
        files = _files(str(directory), tags=above[1] != _NOTHING)
        listed = " ".join(files)
        found = self.stamp(name, listed)
        if above != (_stamp(str(directory)), _stamp(str(directory / "tags"))):
            found = ""  # they are changing
        if len(listed) > _MAX_FILES_CHARS:
            listed = found = ""
        newest = max(_newest_ns(directory / file) for file in ("", *files))
        return Look(listed, found, newest)

    def irregular(self) -> list[Irregular]:
        """Paths at which something is missing, or is nothing that this version makes.

        Files that begin with a dot are left by file systems and tools, and pass.

        Raises:
            StoreError: A directory cannot be read.
        """
        found = []
        for entry, kind in _visible(self._place):
            path = self._directory / entry
            if kind != "directory":
                found.append(_foreign(path, "it is no directory of a name"))
                continue
            try:
                validate_name(entry)
            except RefSyntaxError:
                found.append(_foreign(path, "its name cannot be one"))
                continue
            try:
                found.extend(self._irregular_versions(entry))
            except StoreClosedError as error:
                why = f"({described(Path(error.facts['path']))})"
                problem = f"it cannot be read: Permission denied {why}"
                found.append(Irregular(path, problem, error.hint))
        return sorted(found, key=lambda thing: (thing.path, thing.problem))

    def _irregular_versions(self, name: str) -> Iterator[Irregular]:
        for entry, kind in _visible(self._place.within(name)):
            path = self._directory / name / entry
            if entry == "tags":
                continue
            number = parse_version(entry.removesuffix(".json"))
            if number is None or entry != f"v{number}.json":
                yield _foreign(path, "it is no record, or a second one of a version")
            elif kind != "file":
                yield Irregular(path, "it is no ordinary file", _way(name, number))
        if _gaps(self.versions(name)):
            # Looked at again: the gap may be of versions that came while the names were read.
            for first, last in _gaps(self.versions(name)):
                way = self._way_out_of_gap(name, first, last)
                yield Irregular(self.path(name, first), _missing(first, last), way)

    def _way_out_of_gap(self, name: str, first: int, last: int) -> str:
        if last - first >= _WIDE_GAP:
            after = typed(self.path(name, last + 1))
            return (
                "No deltastore leaves such a gap. Look what comes after it, then remove that: "
                f"`rm -r {after}`; and run `deltastore reindex`."
            )
        if first == last:
            return _way(name, first)
        return (
            "Restore them from a copy of the store, or give them up: "
            f"`for n in $(seq {first} {last}); do deltastore rm {name}:v$n; done`."
        )

    def is_gap(self, name: str, version: int) -> bool:
        """Whether a number was passed over: there is neither a record nor a tombstone of it."""
        used = self.versions(name)
        return version not in used and version < max(used, default=0)

    def has(self, name: str, version: int) -> bool:
        """Whether anything lies where a version's record or tombstone would."""
        return os.path.lexists(self.path(name, version))

    def path(self, name: str, version: int) -> Path:
        """Where a version's record lies."""
        return self._directory / name / f"v{version}.json"

    def tag_path(self, name: str, tag: str) -> Path:
        """Where a tag's file lies."""
        return self._directory / name / "tags" / f"{tag}.json"

    def read(self, name: str, version: int) -> Record | Tombstone:
        """A version's record or tombstone.

        Raises:
            BlobMissingError: There is no such file, or it cannot be read.
            StoreClosedError: The user may not read it.
            ManifestInvalidError: It is neither.
        """
        path, way = self.path(name, version), _way(name, version)
        data = _read(path, self._place.within(name), way)
        with _led_out(way):
            return records.parse_record(data, name=name, version=version, where=str(path))

    def create(self, record: Record, *, check: Callable[[], None] | None = None) -> None:
        """Claim a version's number.

        Args:
            record: The record.
            check: Called when the record's temporary file is whole, before it gets its name; what
                it raises passes through, and nothing is left.

        Raises:
            FileExistsError: Someone else has it.
            StoreError: Someone took the temporary file away: see ``Leases.fence``.
        """
        path = self.path(record.name, record.version)
        place = self._place.within(record.name)
        if record.version > MAX_VERSION:
            raise StoreError(
                f"{record.name} has v{record.version - 1}, the last version that there can be.",
                hint="Give another name with `--name`. `deltastore verify` tells of gaps in the "
                "versions: a record after one was not made by deltastore.",
                path=str(path.parent),
            )
        with durable.translated(path):
            place.make().close()
            try:
                with durable.write_temp(self._temp, [records.record_bytes(record)]) as temp:
                    if check is not None:
                        check()
                    temp.create(place, path.name)
            except FileNotFoundError as error:
                raise StoreError(
                    f"{path} was not created: another process took the record's temporary file "
                    "away, as it took this one for dead.",
                    hint="Run the same command again: what was stored is used again.",
                ) from error
            except FileExistsError as error:
                taken = error
            else:
                return
        # Outside, as there it would be taken for a failure.
        raise taken

    def digest_of_damaged(self, name: str, version: int) -> str:
        """The digest in what may be a damaged record; ``records.UNKNOWN`` where there is none."""
        try:
            data = _read(self.path(name, version), self._place.within(name), "")
        except (BlobMissingError, ManifestInvalidError, StoreError):
            return records.UNKNOWN
        return records.digest_in(data)

    def bury(self, tombstone: Tombstone) -> None:
        """Put a tombstone in the place of a version's record, or of whatever lies there."""
        path = self.path(tombstone.name, tombstone.version)
        place = self._place.within(tombstone.name)
        data = records.tombstone_bytes(tombstone)
        with durable.translated(path):
            place.make().close()
            with durable.write_temp(self._temp, [data], leaving=0) as temp:
                temp.replace(place, path.name)

    def tags(self, name: str) -> list[str]:
        """The tags of a name that have a file, sorted."""
        return _tags(entry.name for entry in _entries(self._place.within(name, "tags")))

    def read_tag(self, name: str, tag: str) -> Tag:
        """A tag's file.

        Raises:
            BlobMissingError: There is no such file, or it cannot be read.
            StoreClosedError: The user may not read it.
            ManifestInvalidError: It is no tag.
        """
        path = self.tag_path(name, tag)
        way = (
            f"Remove it: `deltastore untag {name} {tag}`; or set it anew: "
            f"`deltastore tag REF {tag}`."
        )
        data = _read(path, self._place.within(name, "tags"), way)
        with _led_out(way):
            return records.parse_tag(data, name=name, tag=tag, where=str(path))

    def has_tag(self, name: str, tag: str) -> bool:
        """Whether anything lies where a tag's file would."""
        return os.path.lexists(self.tag_path(name, tag))

    def no_tags(self, name: str) -> Irregular | None:
        """What is no directory and lies where a name's tags would; None where all is well."""
        path = self._directory / name / "tags"
        if not os.path.lexists(path) or (path.is_dir() and not path.is_symlink()):
            return None
        return _foreign(path, "it is no directory of tags")

    def set_tag(self, tag: Tag) -> None:
        """Set a tag, in place of what it meant before."""
        path = self.tag_path(tag.name, tag.tag)
        place = self._place.within(tag.name, "tags")
        with durable.translated(path):
            place.make().close()
            with durable.write_temp(self._temp, [records.tag_bytes(tag)]) as temp:
                temp.replace(place, path.name)

    def remove_tag(self, name: str, tag: str) -> None:
        """Remove a tag, if it is there."""
        path = self.tag_path(name, tag)
        with durable.translated(path):
            try:
                held = self._place.within(name, "tags").hold()
            except FileNotFoundError:
                return
            with held:
                try:
                    held.unlink(path.name, missing_ok=True)
                except IsADirectoryError:
                    with Place(self._temp).make() as temps:
                        durable.set_aside(held, path.name, temps)
                held.sync()


def _versions(files: Iterable[str]) -> list[int]:
    numbers = (parse_version(f.removesuffix(".json")) for f in files if f.endswith(".json"))
    return sorted(number for number in numbers if number is not None)


def _tags(files: Iterable[str]) -> list[str]:
    found = []
    for file in files:
        if file.endswith(".json"):
            with contextlib.suppress(RefSyntaxError):
                found.append(validate_tag(file.removesuffix(".json")))
    return sorted(found)


def _files(directory: str, *, tags: bool) -> list[str]:
    """What a name has; nothing is opened, so that it is not asked where a link leads."""
    try:
        found = os.listdir(directory)  # noqa: PTH208 - names alone
        files = [f"v{version}.json" for version in _versions(found)]
        if tags:
            # Making the directory of the tags changes the one above.
            found = os.listdir(f"{directory}{os.sep}tags")  # noqa: PTH208 - names alone
            files += ["tags", *(f"tags/{tag}.json" for tag in _tags(found))]
    except OSError:
        # Another user made the directory, and closed it to this one.
        return []
    return files


def _stamp(path: str) -> str:
    try:
        found = os.lstat(path)
    except OSError:
        return _NOTHING
    # The inode tells what was put in another's place, the time of the change what has had its
    # modification time set back, the size what some file systems' times do not.
    return f"{found.st_ino}:{found.st_mtime_ns}:{found.st_ctime_ns}:{found.st_size}"


def _newest_ns(path: Path) -> int:
    try:
        found = path.lstat()
    except OSError:
        return 0
    return max(found.st_mtime_ns, found.st_ctime_ns)


def _foreign(path: Path, problem: str) -> Irregular:
    return Irregular(path, problem, durable.way_of_removal(path))


def _way(name: str, version: int) -> str:
    return (
        "Restore it from a copy of the store, or give the version up: "
        f"`deltastore rm {name}:v{version}`."
    )


@contextlib.contextmanager
def _led_out(way: str) -> Iterator[None]:
    """Have an error about a file of a name say what to do about that file."""
    try:
        yield
    except ManifestInvalidError as error:
        newer = error.hint.startswith(records.UPGRADE)
        error.hint = f"{records.UPGRADE}. {way}" if newer else way
        raise


def _gaps(used: list[int]) -> list[tuple[int, int]]:
    """The first and the last number of every gap in version numbers, which are sorted."""
    # Versions are numbered without gaps, and a removed one leaves a tombstone.
    pairs = itertools.pairwise((0, *used))
    return [(before + 1, after - 1) for before, after in pairs if after - before > 1]


def _missing(first: int, last: int) -> str:
    if first == last:
        return "it is missing: neither a record nor a tombstone"
    return (
        f"v{first} to v{last} are missing, a gap of {last - first + 1} versions: neither records "
        "nor tombstones"
    )


def _entries(place: Place) -> Iterator[os.DirEntry[str]]:
    """What is in a directory; nothing where there is none, or a link in its place."""
    try:
        with place.hold() as held, held.scan() as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
    except PermissionError as error:
        directory = place.path.joinpath(*place.below)
        raise closed(directory, (place.path.joinpath(*place.below[:1]), directory)) from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            with durable.translated(place.path.joinpath(*place.below), "read"):
                raise


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    return "file" if entry.is_file(follow_symlinks=False) else "other"


def _visible(place: Place) -> list[tuple[str, str]]:
    """The names in a directory that do not begin with a dot, and what is there: see ``_kind``."""
    with durable.translated(place.path.joinpath(*place.below), "read"):
        try:
            with place.hold() as held, held.scan() as entries:
                return [(e.name, _kind(e)) for e in entries if not e.name.startswith(".")]
        except FileNotFoundError:
            return []
        except PermissionError as error:
            directory = place.path.joinpath(*place.below)
            raise closed(directory, (place.path.joinpath(*place.below[:1]), directory)) from error


def _read(path: Path, place: Place, way: str) -> bytes:
    held = None
    try:
        held = place.hold()
        data = read_regular(path, limit=records.MAX_RECORD_BYTES, within=held)
    except OSError as error:
        if held is None and error.errno == errno.ELOOP:
            with durable.translated(path, "read"):
                raise
        if error.errno in (errno.EACCES, errno.EPERM):
            raise closed(path, (place.path.joinpath(*place.below[:1]), path)) from error
        raise BlobMissingError(f"{path} cannot be read: {error.strerror}.", hint=way) from error
    finally:
        if held is not None:
            held.close()
    if not data:
        raise ManifestInvalidError(f"{path} is empty.", hint=way)
    return data
