from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from deltastore.blobs import durable
from deltastore.system.directory import Place


def test_of_two_creations_one_wins(tmp_path: Path) -> None:
    target, place = tmp_path / "target", Place(tmp_path)
    with durable.write_temp(tmp_path, [b"first"]) as temp:
        temp.create(place, "target")
    with pytest.raises(FileExistsError), durable.write_temp(tmp_path, [b"second"]) as temp:
        temp.create(place, "target")
    assert target.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_creation_is_exclusive_without_links_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "no links")

    monkeypatch.setattr(os, "link", refuse)
    test_of_two_creations_one_wins(tmp_path)


def test_temporary_files_never_share_a_name(tmp_path: Path) -> None:
    assert len({durable.write_temp(tmp_path, []).path for _ in range(50)}) == 50
