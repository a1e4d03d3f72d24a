from __future__ import annotations

import os
import re
import sys

import pytest

from deltastore.blobs.owner import is_dead, owner_token
from deltastore.testing.killing import start

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="nobody is proven dead without /proc"
)
TOKEN = re.compile(r"([0-9a-f]{8})([0-9a-f]{8})([0-9a-f]{8})-(\d+)-(\d+)")


def parts_of(token: str) -> list[str]:
    match = TOKEN.fullmatch(token)
    assert match
    return list(match.groups())


def token_of(machine: str, boot: str, space: str, pid: str, started: str) -> str:
    return f"{machine}{boot}{space}-{pid}-{started}"


def test_this_process_lives() -> None:
    assert not is_dead(owner_token())
    assert not is_dead(owner_token() + "-0-abcdef.json")


def test_a_child_is_dead_when_it_ended_and_not_before() -> None:
    reader, writer = os.pipe()
    release_reader, release_writer = os.pipe()

    def child() -> None:
        os.write(writer, owner_token().encode())
        os.read(release_reader, 1)

    pid = start(child)
    token = os.read(reader, 200).decode()
    assert token != owner_token()
    assert not is_dead(token)
    os.write(release_writer, b"x")
    # Ended, though nobody has asked for its status yet.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert is_dead(token)
    os.waitpid(pid, 0)
    assert is_dead(token)
    for descriptor in (reader, writer, release_reader, release_writer):
        os.close(descriptor)


def test_a_process_id_that_was_given_away_again_is_another_process() -> None:
    *place, pid, started = parts_of(owner_token())
    assert is_dead(token_of(*place, pid, str(int(started) + 1)))


def test_a_machine_that_started_anew_has_no_old_processes() -> None:
    machine, _, space, pid, started = parts_of(owner_token())
    proven = machine != "0" * 8
    assert is_dead(token_of(machine, "1" * 8, space, pid, started)) is proven


def test_other_machines_and_containers_cannot_be_judged() -> None:
    machine, boot, space, _, _ = parts_of(owner_token())
    assert not is_dead(token_of("1" * 8, "1" * 8, space, "1", "1"))
    assert not is_dead(token_of(machine, boot, "1" * 8, "99999999", "1"))
    assert not is_dead(token_of(machine, "0" * 8, space, "99999999", "1"))


@pytest.mark.parametrize("text", ["", "README", "blob-123", "x" * 40, "0" * 24 + "-1-"])
def test_what_is_no_token_is_nobodys(text: str) -> None:
    assert not is_dead(text)
