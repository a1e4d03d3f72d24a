"""Two users of a group, their store, what the victim owns, and what is right.

::

    team/store/      setgid, mode 2775: what the two share
    team/outputs/    likewise: where both make outputs
    victim/          the victim's home: checkpoints, notes, keys, a store of its own
    mallory/         the adversary's
    pristine/        the store and the home as they are when a case begins
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import importlib
import io
import json
import os
import pkgutil
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import judging
import tiny
from acts import Scene
from other_users import TEAM

import deltastore
from deltastore.blobs.owner import owner_token
from deltastore.cli.main import main

_MAX_PATH_CHARS = 400
"""Of places in which secrets are looked for; what lies deeper, the adversary has put there."""

SECRET = "a secret that nobody but its owner may read"


@dataclass
class Known:
    """An artifact that one of the two extracted, from the victim's or its own checkpoints.

    Attributes:
        digest: Its digest.
        pair: The base and the post that it was extracted from.
        blobs: Its blobs' digests, and its own.
        outputs: By new base, the bytes of each tensor of the output: see ``tiny.expected``.
        files: By new base, the bytes of the output's other files, but for those that say who
            called it what.
    """

    digest: str
    pair: tuple[str, str]
    blobs: frozenset[str]
    outputs: dict[str, dict[str, bytes]]
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)


class World:
    """The directory in which everything happens; made by root.

    Args:
        directory: Empty, and others may enter it.
        victim: The user who lists, applies, collects.
        mallory: The user who does what a group member may.
    """

    def __init__(self, directory: Path, victim: int, mallory: int) -> None:
        self.directory = directory
        self.victim, self.mallory = victim, mallory
        self.home = directory / "victim"
        self.work = self.home / "work"
        self.store = directory / "team" / "store"
        self.shared = directory / "team" / "outputs"
        self.own = directory / "mallory"
        self.pristine = directory / "pristine"
        self.known: dict[str, Known] = {}
        self.pairs: dict[tuple[str, str], Known] = {}
        self.tensors: dict[str, tiny.Tensors] = {}

    # --- making it ------------------------------------------------------------------------------

    def prepare(self, run_as: Callable[[int, Callable[[], object]], None]) -> None:
        """Make everything; ``run_as`` runs a function in a child that is a user."""
        team = self.directory / "team"
        for path, owner, mode in (
            (team, 0, 0o755),
            (self.store, 0, 0o2775),
            (self.shared, 0, 0o2775),
            (self.own, self.mallory, 0o2755),
            (self.home, self.victim, 0o755),
        ):
            path.mkdir()
            os.chown(path, owner, TEAM if path != self.home else self.victim)
            path.chmod(mode)
        base = tiny.make_base(1)
        self.tensors = {
            "a": base,
            "b": tiny.trained(base, 9, step=2e-4),
            **{name: tiny.trained(base, seed) for seed, name in enumerate("pqrst", 20)},
        }
        self._load()
        run_as(self.victim, self._make_home)
        run_as(self.mallory, self._make_theirs)
        # So that the digests of these files are remembered, which those of newer ones are not.
        time.sleep(2.1)
        run_as(self.victim, self._publish_mine)
        run_as(self.mallory, self._publish_theirs)
        self._learn(run_as)
        self.pristine.mkdir()
        _copy(self.store, self.pristine / "store")
        _copy(self.home, self.pristine / "victim")
        self.canaries = self.survey()

    def _make_home(self) -> None:
        home = self.home
        for name in ("a", "b", "p", "q", "r"):
            tiny.save(
                home / "models" / name, self.tensors[name], chat_template__jinja="{{ messages }}"
            )
        (home / "work").mkdir()
        (home / "shared-notes.txt").write_text("the group may write here\n")
        os.chown(home / "shared-notes.txt", -1, TEAM)
        (home / "shared-notes.txt").chmod(0o664)
        keys = home / ".ssh"
        keys.mkdir(mode=0o700)
        (keys / "id_ed25519").write_text(SECRET)
        (keys / "id_ed25519").chmod(0o600)
        # Names that a store's directories and an output have as well.
        notes = home / "notes"
        token = owner_token()[:24] + "-4194999-1"
        for name in (
            "README.md",
            "config.json",
            "model.safetensors",
            "deltastore.json",
            "store.json",
            "v1.json",
            "prod.json",
            "old.json",
            "w.v1.rm",
            f"{token}-0-abcd",
            f"{token}-0-abcd.json",
            "0",
            "inner/up",
            "tags/prod.json",
            "w/v1.json",
            "w/tags/prod.json",
            "sha256/" + "0" * 64,
        ):
            path = notes / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{SECRET}: {name}")
            path.chmod(0o600)
            os.utime(path, (1.6e9, 1.6e9))
        with deltastore.open(home / "store") as store:
            base = home / "models" / "a"
            store.extract(base, home / "models" / "p", name="w", tags=["prod"], jobs=1)
        # One that others may not even enter.
        (home / "store").chmod(0o700)

    def _make_theirs(self) -> None:
        for name in ("a", "s", "t"):
            tiny.save(
                self.own / "models" / name,
                self.tensors[name],
                chat_template__jinja="{{ messages }}",
            )

    def _load(self) -> None:
        """Import, and compile, in this process what children then have at once.

        They may not be able to read where Python and the package are.
        """
        for module in pkgutil.walk_packages(deltastore.__path__, "deltastore."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        for name in ("difflib", "platform", "shlex", "traceback", "safetensors.numpy"):
            importlib.import_module(name)
        for name in ("unicode_escape", "utf-16", "utf-32", "latin-1", "ascii", "idna"):
            codecs.lookup(name)
        place = self.directory / "warm"
        for name in "abp":
            tiny.save(place / name, self.tensors[name])
        base, out = ["--base", str(place / "a")], ["--out", str(place / "out")]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for argv in (
                ["extract", *base, "--post", str(place / "p"), "--name", "w", "--json"],
                ["extract", *base, "--post", str(place / "p"), "--name", "x"],
                ["apply", "w", *base, *out],
                ["apply", "w", "--base", str(place / "b"), "--out", str(place / "more")],
                ["apply", "none", *base, *out],
                ["compare", "w", "x"],
                ["resolve", *base],
                ["list"],
                ["show", "w"],
                ["tag", "w", "t"],
                ["untag", "w", "t"],
                ["export", "w", str(place / "export")],
                ["rm", "w"],
                ["gc", "--grace", "0"],
                ["reindex"],
                ["doctor"],
                ["du"],
                ["migrate"],
                ["verify"],
                ["nonsense"],
            ):
                main([*argv, "--store", str(place / "store")])
        shutil.rmtree(place)

    def _publish_mine(self) -> None:
        models = self.home / "models"
        with deltastore.open(self.store) as store:
            store.extract(models / "a", models / "p", name="w", tags=["prod"], jobs=1)
            store.extract(models / "a", models / "q", name="w", jobs=1)
            store.extract(models / "a", models / "q", name="x", tags=["best"], jobs=1)
            store.extract(models / "a", models / "p", name="x", jobs=1)
            store.rm("x:v2")

    def _publish_theirs(self) -> None:
        models = self.own / "models"
        with deltastore.open(self.store) as store:
            store.extract(models / "a", models / "s", name="evil", tags=["best"], jobs=1)
            store.extract(models / "a", models / "t", name="w", tags=["new"], jobs=1)

    def _learn(self, run_as: Callable[[int, Callable[[], object]], None]) -> None:
        """What every artifact's outputs must be; in a store in which nobody has done anything."""
        honest = self.directory / "honest"
        honest.mkdir()
        os.chown(honest, self.victim, self.victim)

        def learn() -> None:
            models = self.home / "models"
            for name in "st":
                tiny.save(honest / name, self.tensors[name], chat_template__jinja="{{ messages }}")
            made = {}
            with deltastore.open(honest / "store") as store:
                for post in "pqrst":
                    source = models / post if post in "pqr" else honest / post
                    digest = store.extract(models / "a", source, name=post, jobs=1).digest
                    made[post] = digest
                    for new in "ab":
                        store.apply(digest, base=models / new, out=honest / f"{post}-{new}", jobs=1)
            (honest / "digests").write_text(json.dumps(made))

        run_as(self.victim, learn)
        for post, digest in json.loads((honest / "digests").read_text()).items():
            blob = honest / "store" / "blobs" / "sha256" / digest.removeprefix("sha256:")
            manifest = json.loads(blob.read_bytes())
            blobs = [manifest["config"], *manifest["layers"]]
            known = Known(
                digest,
                ("a", post),
                frozenset({digest, *(blob["digest"] for blob in blobs)}),
                {
                    new: tiny.expected(self.tensors[new], self.tensors["a"], self.tensors[post])
                    for new in "ab"
                },
                {new: small_files(honest / f"{post}-{new}") for new in "ab"},
            )
            for new in "ab":
                found = tiny.read(honest / f"{post}-{new}")
                assert found == known.outputs[new], f"{post} on {new} is not what torch says"
            self.known[digest] = known
            self.pairs[known.pair] = known
        shutil.rmtree(honest)

    # --- cases ----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Have the store as it was, no outputs, and nothing of the victim's that is not its own."""
        for path in (self.store, self.shared, self.own, self.work, self.home / ".cache"):
            remove(path)
        _copy(self.pristine / "store", self.store)
        for path, owner, group, mode in (
            (self.shared, 0, TEAM, 0o2775),
            (self.own, self.mallory, TEAM, 0o2755),
            (self.work, self.victim, self.victim, 0o755),
        ):
            path.mkdir()
            os.chown(path, owner, group)
            path.chmod(mode)

    def clear_outputs(self) -> None:
        """Have no outputs, and nothing else beside them."""
        for place in (self.work, self.shared):
            for path in place.iterdir():
                if path.is_dir() and not path.is_symlink():
                    remove(path)
                else:
                    path.unlink()

    def restore_home(self) -> None:
        """Have the victim's home as it was, after something became of it."""
        remove(self.home)
        _copy(self.pristine / "victim", self.home)
        self.canaries = self.survey()

    def survey(self) -> dict[Path, tuple[str, ...]]:
        """The victim's files, but for outputs, caches, and the times of the home itself."""
        found = judging.survey([self.home], {self.work, self.home / ".cache"})
        found[self.home] = (*found[self.home][:2], "", "")
        return found

    def scene(self, tokens: dict[str, str]) -> Scene:
        """What the adversary knows."""
        notes = self.home / "notes"
        return Scene(
            store=self.store,
            shared=self.shared,
            own=self.own,
            stash=self.pristine / "store",
            victims=[notes, notes, self.home / ".ssh", self.home / "store", self.home / "models"],
            files=[
                self.home / ".ssh" / "id_ed25519",
                notes / "README.md",
                notes / "old.json",
                self.home / "store" / "catalog.db",
                self.home / "shared-notes.txt",
                self.home / "models" / "a" / "config.json",
            ],
            inputs=[self.home / "models" / name for name in ("a", "b", "p", "q", "r")],
            token=tokens,
        )

    def sound(self) -> bool:
        """Whether every known artifact that a record names has all of its blobs, as they were."""
        right: dict[str, bool] = {}
        for record in sorted((self.store / "names").glob("*/v*.json")):
            try:
                if not record.is_symlink():
                    named = json.loads(record.read_bytes())
                    known = self.known.get(named["digest"])
                    if known is None or "removed" in named:
                        continue
                    for digest in known.blobs:
                        if digest not in right:
                            right[digest] = self._is_right(digest)
                        if not right[digest]:
                            return False
            except (OSError, ValueError, TypeError, KeyError, RecursionError):
                continue
        return True

    def _is_right(self, digest: str) -> bool:
        path = self.store / "blobs" / "sha256" / digest.removeprefix("sha256:")
        try:
            if path.is_symlink() or not path.is_file() or path.stat().st_size > 1 << 24:
                return False
            return hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        except OSError:
            return False

    def leaks(self, since_ns: int) -> list[str]:
        """Files that the adversary may read, changed since then, with a secret in them."""
        found = []
        for place in (self.store, self.shared, self.own):
            todo = [str(place)]
            while todo:
                # Not os.walk: directories may be nested deeper than it can go.
                with suppress(OSError), os.scandir(todo.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            if len(entry.path) < _MAX_PATH_CHARS:
                                todo.append(entry.path)
                        elif _holds(entry.path, SECRET.encode(), since_ns - 10**8):
                            found.append(entry.path)
        return found

    def keep(self, archive: Path) -> None:
        """Put the store, the outputs and the home into an archive."""
        names = [path.name for path in (self.store.parent, self.home)]
        _shell("tar", "-C", str(self.directory), "-czSf", str(archive), *names)


def small_files(output: Path) -> dict[str, bytes]:
    """An output's files but for weights and those that name refs and labels."""
    left_out = {"model.safetensors", "deltastore.json", "README.md"}
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name not in left_out
    }


def _holds(path: str, secret: bytes, since_ns: int) -> bool:
    try:
        status = os.lstat(path)
        if status.st_ctime_ns < since_ns or not 0 < status.st_size < 1 << 22:
            return False
        if not stat.S_ISREG(status.st_mode):
            return False
        with open(path, "rb") as file:
            return secret in file.read()
    except OSError:
        return False


def remove(path: Path) -> None:
    """Remove a tree, however deep."""
    with suppress(OSError, RecursionError):
        shutil.rmtree(path)
    if os.path.lexists(path):
        _shell("rm", "-rf", str(path))


def _copy(source: Path, target: Path) -> None:
    """Copy a tree of files and directories with their owners, modes and times."""
    todo = [(source, target)]
    directories = []
    while todo:
        this, that = todo.pop()
        if this.is_dir():
            that.mkdir()
            directories.append((this, that))
            todo += ((entry, that / entry.name) for entry in this.iterdir())
        else:
            shutil.copyfile(this, that)
            _like(this, that)
    for this, that in reversed(directories):
        _like(this, that)


def _like(this: Path, that: Path) -> None:
    status = this.stat()
    os.chown(that, status.st_uid, status.st_gid)
    that.chmod(stat.S_IMODE(status.st_mode))
    os.utime(that, ns=(status.st_atime_ns, status.st_mtime_ns))


def _shell(*argv: str) -> None:
    # What is removed may be nested deeper than Python's own functions can go.
    subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
