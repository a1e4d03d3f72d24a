"""What a malicious member of the group does to a store: kinds of acts, drawn at random.

``ACTS`` are done between two commands of the victim. ``RACES`` go on while a command runs: each is
one short step, done over and over. Neither waits for anything, and what the system refuses is no
error: the victim's files may be protected well.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import shutil
import socket
import sqlite3
import stat
import struct
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mutate import mutated_bytes
from store_mutations import mutate_database, mutate_document

_EXCHANGE = 2
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Scene:
    """What the adversary knows and may use.

    Attributes:
        store: The store.
        shared: A directory in which both make outputs.
        own: A directory of the adversary's, on the same file system.
        stash: Files of the honest store, which anybody in the group may read.
        victims: Directories of the victim's, to which links are to lead.
        files: Files of the victim's, likewise.
        inputs: The victim's checkpoints, which the adversary may read.
        token: The token of a process that has ended, and of one that runs.
    """

    store: Path
    shared: Path
    own: Path
    stash: Path
    victims: list[Path]
    files: list[Path]
    inputs: list[Path]
    token: dict[str, str]
    numbers: dict[str, int] = field(default_factory=dict)

    def new(self) -> Path:
        """A path of the adversary's own that nobody uses."""
        self.numbers["new"] = self.numbers.get("new", 0) + 1
        return self.own / f"{os.getpid()}-{self.numbers['new']}"


Act = Callable[[random.Random, Scene], str]


# --- parts of acts ------------------------------------------------------------------------------


def take_away(scene: Scene, path: Path) -> None:
    """Have nothing at ``path``; what was there is moved, as others' cannot be removed."""
    if os.path.lexists(path):
        path.rename(scene.new())


def put(scene: Scene, path: Path, data: bytes, mode: int = 0o664) -> None:
    """A file of the adversary's at ``path``."""
    made = scene.new()
    made.write_bytes(data)
    made.chmod(mode)
    if path.is_dir() and not path.is_symlink():
        take_away(scene, path)
    made.rename(path)


def _link_file(draw: random.Random, scene: Scene, path: Path) -> str:
    target = draw.choice(
        (
            *scene.files,
            *scene.files,
            scene.store / "store.json",
            scene.store / "catalog.db",
            Path("/dev/zero"),
            Path("/dev/full"),
            Path("/proc/self/environ"),
            Path("/proc/self/mem"),
            Path("/proc/self/fd/1"),
            path,
            Path("nowhere"),
        )
    )
    take_away(scene, path)
    path.symlink_to(target)
    return f"link to {target}"


def _link_directory(draw: random.Random, scene: Scene, path: Path) -> str:
    target = draw.choice((*scene.victims, *scene.victims, scene.store, Path("/"), path))
    take_away(scene, path)
    path.symlink_to(target)
    return f"link to {target}"


def _hard_link(draw: random.Random, scene: Scene, path: Path) -> str:
    target = draw.choice((*scene.files, *_blobs(scene), *_records(scene)))
    made = scene.new()
    os.link(target, made, follow_symlinks=False)
    take_away(scene, path)
    made.rename(path)
    return f"hard link to {target}"


def _pipe(_draw: random.Random, scene: Scene, path: Path) -> str:
    take_away(scene, path)
    os.mkfifo(path, 0o666)
    path.chmod(0o666)
    return "pipe"


def _socket(_draw: random.Random, scene: Scene, path: Path) -> str:
    take_away(scene, path)
    made = scene.new()
    with closing(socket.socket(socket.AF_UNIX)) as bound:
        bound.bind(str(made))
    made.rename(path)
    return "socket"


def _directory(draw: random.Random, scene: Scene, path: Path) -> str:
    take_away(scene, path)
    path.mkdir()
    for name in draw.sample(_ODD_NAMES, 3):
        with suppress(OSError, ValueError):
            (path / name).write_bytes(b"{}")
    return "directory"


def _deep(draw: random.Random, scene: Scene, path: Path) -> str:
    """Directories below each other: more than Python's functions can call themselves, or fewer."""
    depth = draw.choice((50, 50, 1100))
    made = scene.new()
    made.mkdir()
    here = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    take_away(scene, path)
    made.rename(path)
    return f"directory {depth} deep"


def _sparse(draw: random.Random, scene: Scene, path: Path) -> str:
    size = draw.choice((1 << 20, 1 << 32, 1 << 42))
    made = scene.new()
    with open(made, "wb") as file:
        file.truncate(size)
    made.chmod(0o664)
    take_away(scene, path)
    made.rename(path)
    return f"{size} zeros"


def _closed(draw: random.Random, scene: Scene, path: Path) -> str:
    """The same thing, belonging to the adversary, with permissions of all kinds."""
    mode = draw.choice((0, 0o400, 0o200, 0o040, 0o555, 0o700, 0o2770, 0o4777, 0o777))
    made = scene.new()
    if path.is_dir():
        shutil.copytree(path, made, symlinks=True)
    else:
        shutil.copyfile(path, made, follow_symlinks=False)
    take_away(scene, path)
    made.rename(path)
    path.chmod(mode)
    return f"own copy of mode {mode:o}"


def _empty(_draw: random.Random, scene: Scene, path: Path) -> str:
    put(scene, path, b"")
    return "empty"


def _gone(_draw: random.Random, scene: Scene, path: Path) -> str:
    take_away(scene, path)
    return "gone"


_ODD_NAMES = (
    "\udcff\udcfe",
    "a\nb",
    "-q",
    "--store=x",
    "\x1b[2J",
    "x" * 255,
    "con",
    "W",
    "w ",
    "sha256",
    ".hidden",
    "\u202ename",
    "ｗ",
    "w;id;#",
    "v1.json",
    "é",
)


def _blobs(scene: Scene) -> list[Path]:
    return _entries(scene.store / "blobs" / "sha256")


def _records(scene: Scene) -> list[Path]:
    return sorted((scene.store / "names").glob("*/v*.json"))


def _tags(scene: Scene) -> list[Path]:
    return sorted((scene.store / "names").glob("*/tags/*.json"))


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _names(scene: Scene) -> list[Path]:
    return [path for path in _entries(scene.store / "names") if path.is_dir()]


def _directories(scene: Scene) -> list[Path]:
    """Every directory of the store."""
    top = [scene.store / name for name in ("blobs", "blobs/sha256", "names", "tmp", "leases")]
    top += [scene.store / name for name in ("spare", "spare/bin")]
    return [*top, *top, *_names(scene), *(name / "tags" for name in _names(scene))]


def _files(draw: random.Random, scene: Scene) -> list[Path]:
    """Files of the store, those there are and those that there might be."""
    token = draw.choice(list(scene.token.values()))
    return [
        *(scene.store / name for name in ("store.json", "local-index", "catalog.db")),
        *(scene.store / f"catalog.db-{name}" for name in ("journal", "wal", "shm")),
        *draw.sample(_blobs(scene), min(4, len(_blobs(scene)))),
        *_records(scene),
        *_tags(scene),
        *(name / "v99.json" for name in _names(scene)),
        *_entries(scene.store / "spare")[:2],
        scene.store / "leases" / f"{token}-0-abcd.json",
        scene.store / "leases" / "w.v1.rm",
        scene.store / "tmp" / f"{token}-0-abcd",
    ]


def _place(draw: random.Random, scene: Scene) -> Path:
    return draw.choice((draw.choice(_files(draw, scene)), draw.choice(_directories(scene))))


# --- acts ---------------------------------------------------------------------------------------


def link(draw: random.Random, scene: Scene) -> str:
    """A symbolic link in place of a file or a directory."""
    if draw.random() < 0.5:
        path = draw.choice(_directories(scene))
        return f"{path}: {_link_directory(draw, scene, path)}"
    path = draw.choice(_files(draw, scene))
    return f"{path}: {_link_file(draw, scene, path)}"


def hard(draw: random.Random, scene: Scene) -> str:
    """A second name of a file in place of a file."""
    path = draw.choice(_files(draw, scene))
    return f"{path}: {_hard_link(draw, scene, path)}"


def odd(draw: random.Random, scene: Scene) -> str:
    """A pipe, a socket, a directory, nothing or too much in place of anything."""
    path = _place(draw, scene)
    how = draw.choice((_pipe, _socket, _directory, _deep, _sparse, _empty, _gone))
    return f"{path}: {how(draw, scene, path)}"


def mode(draw: random.Random, scene: Scene) -> str:
    """Permissions that are changed; only an owner may, so the thing becomes the adversary's."""
    path = _place(draw, scene)
    return f"{path}: {_closed(draw, scene, path)}"


def name(draw: random.Random, scene: Scene) -> str:
    """Something under a name that no deltastore gives."""
    directory = draw.choice(_directories(scene))
    path = directory / draw.choice(_ODD_NAMES)
    how = draw.choice((_directory, _pipe, _empty, _link_file, _link_directory))
    return f"{path!r}: {how(draw, scene, path)}"


def record(draw: random.Random, scene: Scene) -> str:
    """A record that is edited, says what another does, or becomes a tombstone."""
    path = draw.choice(_records(scene))
    data = path.read_bytes()
    how = draw.choice(("edit", "edit", "digest", "tombstone", "revive", "remove"))
    if how == "remove":
        take_away(scene, path)
        return f"{path}: removed"
    if how == "edit":
        data = mutate_document(draw, data)
    else:
        document = json.loads(data)
        other = json.loads(draw.choice(_records(scene)).read_bytes())
        if how == "digest":
            document["digest"] = other["digest"]
        elif how == "tombstone":
            document = {key: document[key] for key in ("format", "name", "version", "digest")}
            document |= {"removed": "2025-01-31T12:00:00.000000Z", "removed_by": "nobody@nowhere"}
        else:
            document = other | {key: document[key] for key in ("name", "version")}
        data = _canonical(document)
    _write(draw, scene, path, data)
    return f"{path}: {how}"


def tag(draw: random.Random, scene: Scene) -> str:
    """A tag that is edited, moved, removed or made."""
    path = draw.choice(_tags(scene))
    how = draw.choice(("edit", "move", "remove", "new"))
    if how == "remove":
        take_away(scene, path)
    elif how == "edit":
        _write(draw, scene, path, mutate_document(draw, path.read_bytes()))
    else:
        document = json.loads(path.read_bytes())
        if how == "new":
            document["tag"] = draw.choice(("fresh", "PROD", "v1", "-q", "a b", "\ud800"))
            path = path.with_name(f"{document['tag']}.json")
        document["version"] = draw.choice((1, 2, 3, 99, 1 << 62, 10**30, "1", None))
        _write(draw, scene, path, _canonical(document))
    return f"{path}: {how}"


def version(draw: random.Random, scene: Scene) -> str:
    """Records of numbers that nobody gave: huge, not next, many."""
    path = draw.choice(_records(scene))
    document = json.loads(path.read_bytes())
    how = draw.choice((999_999_999, 1 << 63, 10**100, 10**240, 0, -1, "many"))
    for number in range(50, 450) if how == "many" else (how,):
        document["version"] = number
        put(scene, path.with_name(f"v{number}.json"), _canonical(document))
    return f"{path.parent}: version {how}"


def lease(draw: random.Random, scene: Scene) -> str:
    """A lease of a process that is dead, alive, or elsewhere; or something like one."""
    purpose = draw.choice(("extract", "gc", "gc", "rm", "tag", "else", "\x1b]0;x\x07"))
    document: Any = {
        "purpose": purpose,
        "name": draw.choice(("w", "x", None, "evil", "nothing", "../w", "../../home", 7)),
        "host": draw.choice(("elsewhere", "x" * 70_000, "\x1b[2J")),
        "pid": draw.choice((1, 4_194_999, -1, 1 << 70, "1")),
        "created": "2025-01-31T12:00:00.000000Z",
    }
    whose = draw.choice(list(scene.token))
    path = scene.store / "leases" / f"{scene.token[whose]}-0-{draw.randrange(1 << 32):08x}.json"
    data = _canonical(document)
    if draw.random() < 0.3:
        data = mutate_document(draw, data)
    put(scene, path, data)
    age = draw.choice((0, 0, 7200, -7200, 1e9))
    os.utime(path, (time.time() - age, time.time() - age))
    return f"{path.name}: {purpose}, {whose}, {age} s old"


def claim(draw: random.Random, scene: Scene) -> str:
    """A claim to the removal of a version."""
    path = scene.store / "leases" / f"{draw.choice(('w.v1', 'w.v2', 'x.v1', 'evil.v1'))}.rm"
    whose = draw.choice(list(scene.token))
    how = draw.choice((None, None, _link_file, _pipe, _directory, _sparse, _link_directory))
    if how is not None:
        return f"{path}: {how(draw, scene, path)}"
    put(scene, path, scene.token[whose].encode())
    age = draw.choice((0, 7200, 1e9))
    os.utime(path, (time.time() - age, time.time() - age))
    return f"{path}: {whose}, {age} s old"


def temp(draw: random.Random, scene: Scene) -> str:
    """Something among the temporary files, left by a process that is dead, or another."""
    whose = draw.choice(list(scene.token))
    path = scene.store / "tmp" / f"{scene.token[whose]}-{draw.randrange(99)}-abcd"
    how = draw.choice((_directory, _deep, _link_directory, _link_file, _pipe, _sparse, None))
    if how is not None:
        return f"{path}: {how(draw, scene, path)}"
    # A directory with links in it: whoever empties it must not empty what they lead to.
    path.mkdir()
    for number, target in enumerate((*scene.victims, *scene.files)):
        (path / f"{number}").symlink_to(target)
    (path / "inner").mkdir()
    (path / "inner" / "up").symlink_to(draw.choice(scene.victims))
    return f"{path}: directory of links"


def blob(draw: random.Random, scene: Scene) -> str:
    """A blob with other bytes: exchanged, cut, longer, changed within, of zeros."""
    path, other = draw.choice(_blobs(scene)), draw.choice(_blobs(scene))
    data = path.read_bytes()
    how = draw.choice(("exchange", "cut", "longer", "change", "zeros", "same", "document"))
    changed = {
        "exchange": lambda: other.read_bytes(),
        "cut": lambda: data[: draw.randrange(len(data) or 1)],
        "longer": lambda: data + b"\0" * draw.choice((1, 1 << 16)),
        "change": lambda: mutated_bytes(draw, data),
        "zeros": lambda: b"\0" * len(data),
        "same": lambda: data,
        "document": lambda: mutate_document(draw, data) if data[:1] == b"{" else data[1:],
    }[how]()
    # Of any permissions: a blob that others may write to can be changed after it was checked.
    put(scene, path, changed, draw.choice((0o444, 0o664, 0o666)))
    return f"{path.name[:12]}: {how}"


def marker(draw: random.Random, scene: Scene) -> str:
    """``store.json`` and ``local-index``."""
    path = scene.store / draw.choice(("store.json", "local-index", "local-index"))
    data = path.read_bytes() if path.exists() else b"Every user has one.\n"
    if draw.random() < 0.5:
        data = mutate_document(draw, data)
    put(scene, path, data)
    return f"{path.name}: {data[:50]!r}"


def catalog(draw: random.Random, scene: Scene) -> str:
    """Rows, schema or bytes of the database."""
    path = scene.store / "catalog.db"
    if not path.exists():
        return "no catalog"
    made = scene.new()
    shutil.copyfile(path, made)
    said = mutate_database(draw, made)
    for _ in range(draw.choice((0, 0, 1))):
        said += " | " + mutate_database(draw, made)
    _write(draw, scene, path, made.read_bytes())
    return said


def poison(draw: random.Random, scene: Scene) -> str:
    """Rows by which one artifact, file or pair is taken for another."""
    path = scene.store / "catalog.db"
    if not path.exists():
        return "no catalog"
    how = draw.choice(_POISONS)
    with closing(sqlite3.connect(path, timeout=0.2, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA foreign_keys = OFF")
        if how == "files":
            known = dict(connection.execute("SELECT path, tensors FROM files"))
            tensors = draw.choice([known[path] for path in sorted(known)])
            for checkpoint in scene.inputs[1:]:
                file = checkpoint / "model.safetensors"
                status = file.stat()
                row = (str(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                row += (status.st_ino, status.st_dev, time.time_ns(), tensors)
                connection.execute("INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?)", row)
        else:
            connection.execute(how)
    return how


_OTHER = "(SELECT {} FROM artifacts ORDER BY random() LIMIT 1)"
_POISONS = (
    "files",
    "files",
    "files",
    *(
        f"UPDATE artifacts SET {column} = {_OTHER.format(column)}"
        for column in ("base_content", "post_content", "base_fingerprint", "restore_only")
    ),
    f"UPDATE versions SET digest = {_OTHER.format('digest')}",
    "UPDATE versions SET name = 'x' || version WHERE name = 'w'",
    "UPDATE tags SET version = 1 + abs(random() % 3)",
    "UPDATE versions SET version = version + 7",
    "DELETE FROM versions",
    "DELETE FROM artifacts",
    "UPDATE artifacts SET stored_bytes = 1, raw_bytes = 9223372036854775807",
)


def journal(draw: random.Random, scene: Scene) -> str:
    """What SQLite keeps beside a database: it plays it back, and removes what it names."""
    path = scene.store / "catalog.db"
    how = draw.choice(("super", "super", "super", "pages", "noise", "wal", "link", "pipe"))
    beside = path.with_name(f"{path.name}-journal")
    if how in ("link", "pipe"):
        beside = path.with_name(f"{path.name}-{draw.choice(('journal', 'wal', 'shm'))}")
        make = _link_file if how == "link" else _pipe
        return f"{beside.name}: {make(draw, scene, beside)}"
    if how == "noise":
        put(scene, beside, draw.randbytes(draw.choice((1, 512, 5000))))
        return "noise"
    if how == "wal":
        _use_wal(draw, scene, path)
        return "write-ahead log"
    data = path.read_bytes()
    page = int.from_bytes(data[16:18], "big") or 4096
    count = len(data) // page
    records = b""
    if how == "pages":
        for number in range(1, min(count, 5) + 1):
            content = draw.randbytes(page) if number > 1 else data[:page]
            nonce = 7
            check = (nonce + sum(content[i] for i in range(page - 200, 0, -200))) & 0xFFFFFFFF
            records += struct.pack(">I", number) + content + struct.pack(">I", check)
    head = bytes.fromhex("d9d505f920a163d7")
    head += struct.pack(">5I", min(count, 5) if records else 0, 7, count, 512, page)
    written = head.ljust(512, b"\0") + records
    target: Path | str = "nothing"
    if how == "super":
        target = draw.choice(scene.files)
        named = os.fsencode(target)
        check = sum(b - 256 if b > 127 else b for b in named) & 0xFFFFFFFF
        written += struct.pack(">I", 0x40000000 // page + 1) + named
        written += struct.pack(">II", len(named), check) + bytes.fromhex("d9d505f920a163d7")
    put(scene, beside, written)
    return f"{how}, {target}"


def _use_wal(draw: random.Random, scene: Scene, path: Path) -> None:
    """A database in write-ahead mode, with or without a log that a dead process left."""
    made = scene.new()
    shutil.copyfile(path, made)
    connection = sqlite3.connect(made, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    with suppress(sqlite3.Error):
        connection.execute("UPDATE versions SET digest = 'sha256:' || hex(zeroblob(32))")
    logs = {suffix: Path(f"{made}-{suffix}").read_bytes() for suffix in ("wal", "shm")}
    put(scene, path, made.read_bytes())
    connection.close()
    for suffix, content in logs.items():
        if draw.random() < 0.7:
            put(scene, Path(f"{path}-{suffix}"), content)


def publish(draw: random.Random, scene: Scene) -> str:
    """What an honest member does: a new version of what is known, a tag, a removal of one."""
    source = draw.choice(sorted(scene.stash.glob("names/*/v*.json")))
    document = json.loads(source.read_bytes())
    directory = scene.store / "names" / draw.choice(("w", "x", "evil", "fresh"))
    directory.mkdir(exist_ok=True)
    number = 1 + max(
        (int(p.stem[1:]) for p in directory.glob("v*.json") if p.stem[1:].isdecimal()), default=0
    )
    if number > 10**6:
        return "no number left"
    document |= {"name": directory.name, "version": number}
    put(scene, directory / f"v{number}.json", _canonical(document))
    return f"{directory.name}:v{number} is {document['digest'][:19]}"


def partial(draw: random.Random, scene: Scene) -> str:
    """Something like an unfinished output of a dead process, where the victim makes outputs."""
    path = scene.shared / f".out.partial-{draw.randrange(1 << 48):012x}"
    document = {
        "host": socket.gethostname(),
        "machine": _read("/etc/machine-id"),
        "boot": draw.choice((_read("/proc/sys/kernel/random/boot_id"), "another")),
        "namespace": str(Path("/proc/self/ns/pid").readlink()),
        "pid": 4_194_999,
        "started": "1",
        "created": 0.0,
    }
    text = json.dumps(document).encode()
    how = draw.choice(("link", "links", "deep", "lease link", "out link", "file"))
    if how == "link":
        path.symlink_to(draw.choice(scene.victims))
        path.with_name(f"{path.name}.lease").write_bytes(text)
    elif how == "out link":
        path = scene.shared / draw.choice(("out", f".out.{scene.token['dead']}.partial"))
        new = (scene.shared / "elsewhere", scene.victims[0] / "planted")
        path.symlink_to(draw.choice((*scene.victims, *new)))
    elif how == "lease link":
        path.mkdir()
        (path / ".lease").symlink_to(draw.choice(scene.files))
    elif how == "file":
        path.write_bytes(b"")
        path.with_name(f"{path.name}.lease").write_bytes(mutate_document(draw, text))
    else:
        if how == "deep":
            _deep(draw, scene, path)
        else:
            path.mkdir()
            for number, target in enumerate((*scene.victims, *scene.files)):
                (path / f"{number}").symlink_to(target)
        (path / ".lease").write_bytes(text)
    return f"{path.name}: {how}"


def huge(draw: random.Random, scene: Scene) -> str:
    """Very many small things, or a large one."""
    directory = draw.choice(
        [scene.store / name for name in ("tmp", "leases", "blobs/sha256", "names")]
    )
    how = draw.choice(("many", "large"))
    if how == "many":
        token = draw.choice(list(scene.token.values()))
        for number in range(600):
            (directory / f"{token}-{number}-abcd.json").write_bytes(b"{}")
    else:
        path = draw.choice(_files(draw, scene))
        _sparse(draw, scene, path)
        return f"{path}: large"
    return f"{directory}: {how}"


def _write(draw: random.Random, scene: Scene, path: Path, data: bytes) -> None:
    """Give a file other bytes, in place where that may be, or as a file of one's own."""
    if draw.random() < 0.5:
        with suppress(OSError), _opened(path) as file:
            file.write(data)
            file.truncate()
            return
    put(scene, path, data)


def _opened(path: Path) -> BinaryIO:
    """A file to be written in place, if it is no other file's second name: that is not the aim."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EMLINK, "not its only name", str(path))
    return open(descriptor, "r+b")


def _canonical(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


ACTS: dict[str, Act] = {
    act.__name__: act
    for act in (
        journal,
        catalog,
        poison,
        record,
        tag,
        version,
        lease,
        claim,
        temp,
        link,
        hard,
        blob,
        marker,
        partial,
        odd,
        mode,
        name,
        huge,
        publish,
    )
}


# --- races --------------------------------------------------------------------------------------


class Swap:
    """Exchanges a file or directory for something else and back, over and over."""

    def __init__(self, draw: random.Random, scene: Scene) -> None:
        self._scene = scene
        directory = draw.random() < 0.5
        there = _directories(scene) if directory else _files(draw, scene)
        self._path = draw.choice([path for path in there if os.path.lexists(path)] or there)
        self._other = scene.new()
        make = (
            (_link_directory, _closed, _directory)
            if directory
            else (
                _link_file,
                _pipe,
                _sparse,
                _empty,
                _hard_link,
                _link_file,
            )
        )
        if draw.random() < 0.3 and not directory:
            shutil.copyfile(draw.choice(_blobs(scene)), self._other)
            self.said = "bytes of another blob"
        elif (how := draw.choice(make)) is _closed:
            shutil.copytree(self._path, self._other, symlinks=True)
            self._other.chmod(draw.choice((0, 0o555, 0o2775)))
            self.said = "own copy"
        else:
            self.said = how(draw, scene, self._other)
        self.said = f"swap {self._path}: {self.said}"

    def step(self, draw: random.Random) -> None:
        """Exchange once."""
        exchange(self._path, self._other)
        if draw.random() < 0.5:
            time.sleep(draw.random() * 0.004)


class Outputs:
    """Exchanges unfinished outputs, or files within, for links to the victim's."""

    said = "swap unfinished outputs"

    def __init__(self, draw: random.Random, scene: Scene) -> None:
        self._scene = scene
        self._within = draw.random() < 0.5
        self.said = f"swap {'files within ' if self._within else ''}unfinished outputs"

    def step(self, draw: random.Random) -> None:
        """Exchange each that is there."""
        for path in _entries(self._scene.shared):
            if "partial" not in path.name or path.is_symlink():
                continue
            if path.is_dir() and self._within:
                for inner in _entries(path):
                    if not inner.is_symlink() and draw.random() < 0.5:
                        other = self._scene.new()
                        other.symlink_to(draw.choice((*self._scene.files, *self._scene.victims)))
                        exchange(inner, other)
            elif draw.random() < 0.5:
                other = self._scene.new()
                other.symlink_to(draw.choice(self._scene.victims))
                exchange(path, other)


class Temporary:
    """Exchanges the temporary files of the victim, while they are written, for something else."""

    def __init__(self, draw: random.Random, scene: Scene) -> None:
        self._scene = scene
        self._how = draw.choice(("link", "bytes", "hard", "remove"))
        self._where = draw.choice(("tmp", "leases"))
        self.said = f"temporary files in {self._where}: {self._how}"

    def step(self, draw: random.Random) -> None:
        """Exchange each that is there."""
        scene = self._scene
        for path in _entries(scene.store / self._where):
            if path.is_symlink() or path.is_dir():
                continue
            if self._how == "remove":
                take_away(scene, path)
                continue
            other = scene.new()
            if self._how == "link":
                other.symlink_to(draw.choice(scene.files))
            elif self._how == "hard":
                os.link(draw.choice((*scene.files, *_blobs(scene))), other)
            else:
                other.write_bytes(draw.randbytes(200))
            exchange(path, other)


class Writing:
    """Writes into a blob of the adversary's own, of the right bytes, and back."""

    def __init__(self, draw: random.Random, scene: Scene) -> None:
        self._path = draw.choice(_blobs(scene))
        self._right = self._path.read_bytes()
        put(scene, self._path, self._right)
        self.said = f"write into {self._path.name[:12]}"

    def step(self, draw: random.Random) -> None:
        """Change a byte, or put it right."""
        with _opened(self._path) as file:
            if draw.random() < 0.3:
                file.truncate(draw.randrange(len(self._right) + 1))
            file.write(self._right if draw.random() < 0.5 else mutated_bytes(draw, self._right))


class Locking:
    """Holds the catalog's lock for moments, or journals lie beside it."""

    def __init__(self, draw: random.Random, scene: Scene) -> None:
        self._path = scene.store / "catalog.db"
        self._seconds = draw.choice((0.01, 0.1, 0.4))
        self.said = f"lock the catalog for {self._seconds} s"

    def step(self, draw: random.Random) -> None:
        """Hold it once."""
        uri = f"{self._path.as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=0.05, isolation_level=None)) as it:
            it.execute("BEGIN EXCLUSIVE")
            time.sleep(self._seconds)
            it.execute("ROLLBACK")
        time.sleep(draw.random() * 0.05)


class Journals:
    """Plants journals again and again."""

    said = "plant journals"

    def __init__(self, _draw: random.Random, scene: Scene) -> None:
        self._scene = scene

    def step(self, draw: random.Random) -> None:
        """Plant one."""
        journal(draw, self._scene)
        time.sleep(draw.random() * 0.01)


class Acting:
    """Does any act, again and again."""

    said = "any acts"

    def __init__(self, _draw: random.Random, scene: Scene) -> None:
        self._scene = scene

    def step(self, draw: random.Random) -> None:
        """Do one."""
        draw.choice(list(ACTS.values()))(draw, self._scene)
        time.sleep(draw.random() * 0.02)


RACES: dict[str, Callable[[random.Random, Scene], Any]] = {
    "swap": Swap,
    "outputs": Outputs,
    "temporary": Temporary,
    "writing": Writing,
    "locking": Locking,
    "journals": Journals,
    "acting": Acting,
}


def exchange(one: Path, other: Path) -> None:
    """Exchange two names at one instant.

    Raises:
        OSError: The system refuses, or one of them is not there.
    """
    result = _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE)
    if result:
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOSYS):
            # A file system that cannot: a moment without either.
            between = other.with_name(f"{other.name}-between")
            one.rename(between)
            other.rename(one)
            between.rename(other)
            return
        raise OSError(number, os.strerror(number), str(one))


def sweep(scene: Scene) -> None:
    """Remove what has gathered in the adversary's own directory, as far as it may."""
    for path in _entries(scene.own):
        with suppress(OSError, RecursionError):
            if stat.S_ISDIR(path.lstat().st_mode):
                continue
            path.unlink()
