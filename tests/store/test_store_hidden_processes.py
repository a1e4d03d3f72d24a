"""A process that cannot be seen is no dead one: ``/proc`` hides it, is another's, or is not there.

Children get a mount namespace of their own, which takes root.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from other_users import ANN, BOB, TEAM, becoming

from deltastore.blobs.owner import is_alive, is_dead, owner_token
from deltastore.checkpoint.lease import create_partial, remove_dead_partials
from deltastore.operations.gc import gc
from deltastore.remotes.oci_layout import write_layout
from deltastore.store import open_store
from deltastore.system.directory import Directory
from deltastore.testing.artifacts import publish, put_artifact
from deltastore.testing.killing import start, succeeds

pytestmark = pytest.mark.blob_files

NEWNS, NEWPID = 0x20000, 0x20000000
Action = Callable[[], object]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users and mount")


def unshare(flags: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def mounted(*arguments: str) -> None:
    """Mount for this process and its children alone."""
    unshare(NEWNS)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", *arguments], check=True)


@pytest.fixture(scope="module")
def mounts() -> None:
    """Skips where a machine does not let root mount."""

    def attempt() -> None:
        try:
            mounted("-t", "proc", "-o", "hidepid=2", "proc", "/proc")
        except (OSError, subprocess.CalledProcessError):
            os._exit(3)

    _, status = os.waitpid(start(attempt), 0)
    if os.waitstatus_to_exitcode(status) == 3:
        pytest.skip("no mount namespaces on this machine")


def hidden(action: Action, user: int = BOB) -> Action:
    """``action`` for a child that is a user who sees processes of his own alone."""

    def run() -> None:
        mounted("-t", "proc", "-o", "hidepid=2", "proc", "/proc")
        becoming(user, 0o002, action)()

    return run


@contextmanager
def held(user: int, action: Callable[[Callable[[], None]], None]) -> Iterator[int]:
    """A child of a user who calls what he is given and then stands still; killed at the end."""
    reader, writer = os.pipe()

    def ready() -> None:
        os.write(writer, b"x")
        signal.pause()

    pid = start(becoming(user, 0o002, lambda: action(ready)))
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def team(public_path: Path) -> Path:
    for name in ("store", "outputs"):
        path = public_path / name
        path.mkdir()
        os.chown(path, 0, TEAM)
        path.chmod(0o2775)
    return public_path


@as_root
@pytest.mark.usefixtures("mounts")
def test_gc_spares_what_a_writer_relies_on_that_it_cannot_see(team: Path) -> None:
    path = team / "store"
    with open_store(path) as store:
        publish(store, "m", 1)
    subprocess.run(["chgrp", "-R", str(TEAM), path], check=True)
    subprocess.run(["chmod", "-R", "g+rwX", path], check=True)

    def write(ready: Callable[[], None]) -> None:
        with open_store(path) as store, store.parts.leases.hold("extract", "n"):
            put_artifact(store, 2)
            ready()

    def collect() -> None:
        with open_store(path) as store:
            assert [lease.purpose for lease in store.parts.leases.all()] == ["extract"]
            assert gc(store, grace_s=0).removed == 0

    def find_nobody() -> None:
        with open_store(path) as store:
            assert store.parts.leases.all() == []
            assert gc(store, grace_s=0).removed > 0

    with held(ANN, write):
        succeeds(start(hidden(collect)))
    succeeds(start(hidden(find_nobody)))


@as_root
@pytest.mark.usefixtures("mounts")
def test_claims_outputs_and_exports_of_those_who_cannot_be_seen_stay(team: Path) -> None:
    path, outputs = team / "store", team / "outputs"
    with open_store(path) as store:
        publish(store, "m", 1)
    subprocess.run(["chgrp", "-R", str(TEAM), path], check=True)
    subprocess.run(["chmod", "-R", "g+rwX", path], check=True)

    def begin(ready: Callable[[], None]) -> None:
        with (
            open_store(path) as store,
            store.parts.claims.hold("m", 1, decided=lambda: False),
        ):
            create_partial(Directory.hold(outputs), "model")
            create_partial(Directory.hold(outputs), "layout")
            ready()

    def look() -> None:
        assert remove_dead_partials(outputs / "model") == []
        with open_store(path) as store:
            assert store.parts.claims.sweep() == 0
            write_layout(store, store.resolve("m"), outputs / "layout")
        assert len(list(outputs.glob(".layout.*"))) == 1

    def look_again() -> None:
        assert len(remove_dead_partials(outputs / "model")) == 1
        with open_store(path) as store:
            assert not list((path / "leases").iterdir())
            (outputs / "layout").rename(outputs / "before")
            write_layout(store, store.resolve("m"), outputs / "layout")
        assert not list(outputs.glob(".*"))

    with held(ANN, begin):
        succeeds(start(hidden(look)))
    # What is left of an output is its owner's to remove.
    succeeds(start(hidden(look_again, ANN)))


@as_root
@pytest.mark.usefixtures("mounts")
def test_without_proc_nobody_is_judged(tmp_path: Path) -> None:
    mine = owner_token()

    def look() -> None:
        mounted("-t", "tmpfs", "tmpfs", "/proc")
        assert not is_dead(mine)
        assert not is_alive(mine)
        assert not is_dead(owner_token())

    succeeds(start(look))


@as_root
@pytest.mark.usefixtures("mounts")
def test_the_proc_of_another_container_says_nothing() -> None:
    """In a namespace of process ids whose ``/proc`` still counts as the one around it does."""

    def inside() -> None:
        reader, writer = os.pipe()

        def sibling() -> None:
            os.write(writer, owner_token().encode())
            signal.pause()

        pid = start(sibling)
        token = os.read(reader, 200).decode()
        # /proc/2 is a thread of the kernel, or nobody, and never this process.
        assert not is_dead(token)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert is_dead(token)

    def outside() -> None:
        unshare(NEWPID)
        succeeds(start(inside))

    succeeds(start(outside))


def test_a_command_whose_name_is_cut_within_a_letter() -> None:
    def look() -> None:
        Path("/proc/self/comm").write_bytes("обучение".encode()[:15])
        token = owner_token()
        assert not token.endswith("-0")
        assert is_alive(token)
        assert not is_dead(token)

    succeeds(start(look))
