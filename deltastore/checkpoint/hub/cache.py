"""The hub's local cache, as huggingface_hub lays it out: other tools find what is put there.

    models--org--name/
        blobs/<digest>                    the bytes, by the digest that the hub's ETag is
        snapshots/<commit>/<path>         links to them
        refs/<branch>                     the commit that a branch was

Several users may share a cache, so every directory in it is opened from its parent, and a link is
followed only if it is this user's or root's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from deltastore.checkpoint.hub import limits
from deltastore.checkpoint.hub.listing import COMMIT, is_safe_name
from deltastore.digest import HEX64
from deltastore.errors import HubError
from deltastore.text import typed

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LOOK_S = 0.2
_PIECE_BYTES = 1 << 20
_LOCK_PATIENCE_S = 20.0
_TAG = "CACHEDIR.TAG"
_TAG_TEXT = b"Signature: 8a477f597d28d172789f06886806bc55\n"


def cache_root() -> Path:
    """Where the cache is (``HF_HOME``, ``HF_HUB_CACHE``)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def storage_name(repo: str) -> str:
    """The directory of a repository in the cache."""
    return "--".join(["models", *repo.split("/")])


def snapshot_folder(repo: str, commit: str) -> Path:
    """Where a commit's files are."""
    return cache_root() / storage_name(repo) / "snapshots" / commit


def has_blob(repo: str, name: str | None, size: int | None) -> bool:
    """Whether the cache has the bytes of a file, whatever paths it has them under."""
    if name is None or not is_safe_name(name):
        return False
    with suppress(OSError):
        status = (cache_root() / storage_name(repo) / "blobs" / name).lstat()
        return stat.S_ISREG(status.st_mode) and size in (None, status.st_size)
    return False


def blob_sha256(path: Path) -> str | None:
    """The sha256 (hex) by whose name the local cache keeps a file, if it is one of its blobs.

    Small files, which the hub does not keep by their sha256, are blobs of shorter names.
    """
    real = Path(os.path.realpath(path))
    return real.name if real.parent.name == "blobs" and HEX64.match(real.name) else None


def cached_file(repo: str, commit: str, filename: str) -> Path | None:
    """A file of a commit in the cache, if it is there.

    Raises:
        HubError: It is a link out of the cache.
    """
    path = snapshot_folder(repo, commit) / filename
    if not path.is_file():
        return None
    check_inside(repo, path)
    return path


def check_inside(repo: str, path: Path) -> None:
    """Make sure that a link in the cache leads to a file of the cache.

    Raises:
        HubError: It leads out of it.
    """
    real = os.path.realpath(path)
    storage = cache_root() / storage_name(repo)
    # Own links are followed: some move a large repository to another disk.
    roots = [cache_root(), *(at for at in (storage, storage / "blobs") if _is_trusted(at))]
    if not any(real.startswith(os.path.realpath(root) + os.sep) for root in roots):
        raise HubError(
            f"{path} leads out of the hub's local cache, to {real}.",
            hint=f"Look who put it there, and remove it: `rm {typed(path)}`.",
            path=str(path),
        )


def check_links(repo: str, folder: Path) -> None:
    """Make sure of all files that a commit has in the cache.

    Raises:
        HubError: One is a link out of it, or there are too many to look at.
    """
    count = 0
    check_inside(repo, folder)
    for place, folders, files in os.walk(folder):
        count += len(folders) + len(files)
        if count > limits.MAX_LISTED_FILES:
            raise HubError(
                f"{folder} holds more than {limits.MAX_LISTED_FILES} files.",
                hint="Fetch the repository again into an empty cache.",
                path=str(folder),
            )
        for name in (*folders, *files):
            check_inside(repo, Path(place) / name)


def read_ref(repo: str, revision: str) -> str | None:
    """The commit that a branch or tag was when it was last fetched.

    Raises:
        HubError: The cache says something else in its place.
    """
    if not is_safe_name(revision):
        return None
    place = [storage_name(repo), "refs", *revision.split("/")]
    try:
        with _opened(place[:-1], make=False) as folder:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(place[-1], flags, dir_fd=folder)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        text = os.read(descriptor, limits.MAX_REF_BYTES).decode("ascii", "replace").strip()
    finally:
        os.close(descriptor)
    if not COMMIT.match(text):
        path = cache_root().joinpath(*place)
        raise HubError(
            f"{path} does not name a commit; expected 40 hexadecimal digits.",
            hint=f"Remove it: `rm {typed(path)}`; it is written again at the next download.",
            path=str(path),
        )
    return text


def write_ref(repo: str, revision: str, commit: str) -> None:
    """Note which commit a branch was, as the library does, so that it is found offline.

    What cannot be noted is only not found offline.
    """
    if revision == commit or not is_safe_name(revision):
        return
    *folders, name = revision.split("/")
    with (
        suppress(OSError),
        _opened([storage_name(repo), "refs", *folders], make=True) as folder,
    ):
        _write_new(folder, name, commit.encode())


class Blobs:
    """A repository's blobs, open to be written; made by :func:`open_blobs`."""

    def __init__(self, repo: str, descriptor: int) -> None:
        self.repo = repo
        self.descriptor = descriptor

    def has(self, name: str, size: int | None) -> bool:
        """Whether a blob is there, of this size."""
        try:
            found = os.stat(name, dir_fd=self.descriptor)
        except OSError:
            return False
        if not stat.S_ISREG(found.st_mode) or (size is not None and found.st_size != size):
            return False
        check_inside(self.repo, cache_root() / storage_name(self.repo) / "blobs" / name)
        return True

    def begin(self, name: str) -> tuple[str, int]:
        """A new file beside the blobs, and its descriptor."""
        temporary = f"{name}.{uuid.uuid4().hex[:8]}.incomplete"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return temporary, os.open(temporary, flags, 0o666, dir_fd=self.descriptor)

    def finish(self, temporary: str, name: str) -> None:
        """Make a new file a blob."""
        own = self.descriptor
        os.replace(temporary, name, src_dir_fd=own, dst_dir_fd=own)

    def remove(self, temporary: str) -> None:
        """Remove a new file, if it is still there."""
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=self.descriptor)

    def link(self, commit: str, filename: str, blob: str, *, new: bool) -> None:
        """Let a commit have a blob under a path; ``new`` if no other path has it."""
        from huggingface_hub import constants

        *folders, name = PurePosixPath(filename).parts
        place = [storage_name(self.repo), "snapshots", commit, *folders]
        target = "/".join([*[".."] * (2 + len(folders)), "blobs", blob])
        with _opened(place, make=True) as folder:
            made = f".{uuid.uuid4().hex}.tmp"
            if constants.HF_HUB_DISABLE_SYMLINKS or not _link(target, made, folder):
                # The library, too, has the file itself there then.
                if new:
                    os.replace(blob, made, src_dir_fd=self.descriptor, dst_dir_fd=folder)
                else:
                    self._copy(blob, folder, made)
            os.replace(made, name, src_dir_fd=folder, dst_dir_fd=folder)

    def _copy(self, blob: str, folder: int, made: str) -> None:
        def source(name: str, flags: int) -> int:
            return os.open(name, flags | os.O_CLOEXEC, dir_fd=self.descriptor)

        def target(name: str, flags: int) -> int:
            return os.open(name, flags | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)

        with open(blob, "rb", opener=source) as read, open(made, "wb", opener=target) as written:
            shutil.copyfileobj(read, written, _PIECE_BYTES)

    @contextmanager
    def locked(self, name: str, tells: Callable[[], None]) -> Iterator[None]:
        """While no other process downloads a blob, if it can be had.

        The lock is the library's. It only saves bandwidth: whoever holds it and brings nothing
        about for a while is not waited for.

        Args:
            name: The blob.
            tells: Called now and then; may raise to stop.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            with _opened([".locks", storage_name(self.repo)], make=True) as folder:
                descriptor = os.open(f"{name}.lock", flags, 0o664, dir_fd=folder)
        except OSError:
            yield
            return
        try:
            self._wait(descriptor, name, tells)
            yield
        finally:
            os.close(descriptor)

    def _wait(self, descriptor: int, name: str, tells: Callable[[], None]) -> None:
        seen, since = self._state(name), time.monotonic()
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                now = self._state(name)
                if now != seen:
                    seen, since = now, time.monotonic()
                if time.monotonic() - since > _LOCK_PATIENCE_S:
                    return
                tells()
                time.sleep(_LOOK_S)
            except OSError:
                return
            else:
                return

    def _state(self, name: str) -> list[tuple[str, int]]:
        """What others have of a blob so far."""
        found = []
        with os.scandir(self.descriptor) as entries:
            for entry in entries:
                if entry.name.startswith(name):
                    with suppress(OSError):
                        found.append((entry.name, entry.stat(follow_symlinks=False).st_size))
        return sorted(found)


@contextmanager
def open_blobs(repo: str) -> Iterator[Blobs]:
    """A repository's blobs, made if they are not there.

    Raises:
        OSError: The cache cannot be written.
    """
    with _opened([storage_name(repo), "blobs"], make=True) as folder:
        yield Blobs(repo, folder)


@contextmanager
def _opened(parts: Sequence[str], *, make: bool) -> Iterator[int]:
    """A directory below the cache, opened part by part."""
    root = cache_root()
    if make and not root.exists():
        root.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            (root / _TAG).write_bytes(_TAG_TEXT)
    descriptor = os.open(root, _DIRECTORY)
    try:
        for part in parts:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=descriptor)
            try:
                below = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                below = _follow(part, descriptor, error)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _follow(part: str, directory: int, error: OSError) -> int:
    """Open the directory to which a link of this user or of root leads."""
    link = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        found = os.fstat(link)
        if not stat.S_ISLNK(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            raise error
        # Read from what was looked at: the name may be another link's by now.
        return os.open(os.readlink("", dir_fd=link), _DIRECTORY, dir_fd=directory)
    finally:
        os.close(link)


def _link(target: str, name: str, folder: int) -> bool:
    """Make a symbolic link; False if the file system has none."""
    try:
        os.symlink(target, name, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM):
            return False
        raise
    return True


def _is_trusted(path: Path) -> bool:
    try:
        return path.lstat().st_uid in (0, os.geteuid())
    except OSError:
        return False


def _write_new(folder: int, name: str, data: bytes) -> None:
    new = f"{name}.{uuid.uuid4().hex[:8]}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(new, flags, 0o666, dir_fd=folder)
    try:
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)
        os.replace(new, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(OSError):
            os.unlink(new, dir_fd=folder)
        raise
