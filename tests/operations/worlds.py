"""A store with a few artifacts, the commands that change it, and what must hold after each."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from checkpoints import Tensors, assert_same_bits, load, model, save, trained

import deltastore
from deltastore.errors import OutputExistsError, RefNotFoundError
from deltastore.operations.reindex import reindex

# The versions before the command, with their tags.
BEFORE = {"x:v1": ("old", "t"), "x:v2": (), "y:v1": ()}


@dataclass(frozen=True)
class World:
    """Checkpoints, a store to copy, and what its versions give on their own base."""

    directory: Path
    posts: dict[str, Tensors]

    @property
    def base(self) -> Path:
        return self.directory / "base"

    @property
    def store(self) -> Path:
        return self.directory / "store"

    @property
    def out(self) -> Path:
        return self.directory / "outputs" / "out"


def make_world(directory: Path) -> World:
    """Four fine-tunes of a base, three of which are in the store."""
    base = model("base")
    files = {"config.json": '{"model_type": "llama"}', "tokenizer.json": "{}"}
    save(directory / "base", base, shards=2, files=files)
    posts = {}
    for name in ("one", "two", "three", "four"):
        posts[name] = trained(base, name)
        save(directory / name, posts[name], files=files)
    with deltastore.open(directory / "store") as store:
        store.extract(directory / "base", directory / "one", name="x", tags=["t", "old"])
        store.extract(directory / "base", directory / "two", name="x")
        store.extract(directory / "base", directory / "three", name="y")
    (directory / "outputs").mkdir()
    return World(directory, posts)


def extract(world: World) -> None:
    with deltastore.open(world.store) as store:
        store.extract(world.base, world.directory / "four", name="x", tags=["t", "new"], jobs=1)


def extract_what_follows(world: World) -> None:
    """z:v1, which begins where x:v1 ends."""
    with deltastore.open(world.store) as store:
        store.extract(world.directory / "one", world.directory / "four", name="z")


def compose(world: World) -> None:
    with deltastore.open(world.store) as store:
        store.compose(["x:v1", "z"], base=world.base, name="x", tags=["t", "new"], jobs=1)


def tag(world: World) -> None:
    with deltastore.open(world.store) as store:
        store.tag("x:v2", "t")


def untag(world: World) -> None:
    with deltastore.open(world.store) as store, suppress(RefNotFoundError):
        store.untag("x", "t")


def rm(world: World) -> None:
    with deltastore.open(world.store) as store, suppress(RefNotFoundError):
        store.rm("x:v1")


def collect(world: World) -> None:
    rm(world)
    with deltastore.open(world.store) as store:
        store.gc(grace_s=0)


def rebuild(world: World) -> None:
    reindex(world.store)


def apply(world: World) -> None:
    with deltastore.open(world.store) as store, suppress(OutputExistsError):
        store.apply("x:v1", base=world.base, out=world.out, jobs=1)


def apply_into(world: World) -> None:
    """To a directory that somebody has prepared."""
    world.out.mkdir(exist_ok=True)
    apply(world)


def listed(world: World) -> dict[str, tuple[str, ...]]:
    with deltastore.open(world.store) as store:
        return {f"{found.name}:v{found.version}": found.tags for found in store.list()}


def check_whole(world: World) -> None:
    """Nothing is wrong, and every version that is listed gives what it was made from."""
    with deltastore.open(world.store) as store:
        assert store.verify().problems == ()
        for found in store.list():
            out = world.directory / "check"
            base = world.directory / found.base
            store.apply(f"{found.name}:v{found.version}", base=base, out=out, jobs=1)
            assert_same_bits(load(out), world.posts[found.post])
            shutil.rmtree(out)
    if world.out.exists() and any(world.out.glob("[!.]*")):
        assert_same_bits(load(world.out), world.posts["one"])


def check_nothing_left_over(world: World) -> None:
    """After a collection there is no file that nothing refers to."""
    with deltastore.open(world.store) as store:
        store.gc(grace_s=0)
        report = store.verify()
        assert (report.problems, report.orphans) == ((), ())
    present = {str(p.relative_to(world.store)) for p in world.store.rglob("*") if p.is_file()}
    strays = {
        name
        for name in present - {"store.json", "catalog.db", "was-garbage"}
        if not name.startswith(("blobs/sha256/", "names/", "spare/"))
    }
    assert strays == set()
    assert {path.name for path in world.out.parent.iterdir()} <= {world.out.name}
    assert not list(world.out.glob(".*"))
