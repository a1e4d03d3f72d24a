"""The library: the same operations as methods of a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import deltastore

if TYPE_CHECKING:
    from tests.cli.conftest import Models


def test_the_readme_in_the_library(models: Models, tmp_path: Path) -> None:
    with deltastore.open(tmp_path / "store") as store:
        artifact = store.extract(models.base, Path(models.post), name="instruct", tags=["good"])
        (listing,) = store.list(name="inst*")
        assert (listing.name, listing.digest) == ("instruct", artifact.digest)

        done = store.apply(artifact, base=models.new_base, out=tmp_path / "out", scale=0.5)
        assert [ref["scale"] for ref in done.refs] == [0.5]
        assert (tmp_path / "out" / "deltastore.json").exists()

        both = store.apply(
            ["instruct:good", listing], base=models.new_base, out=tmp_path / "x", dry_run=True
        )
        assert [ref["scale"] for ref in both.refs] == [1.0, 1.0]
        scaled = store.apply(
            [listing, listing],
            base=models.new_base,
            out=tmp_path / "x",
            scale=[1, -1],
            dry_run=True,
        )
        assert [ref["scale"] for ref in scaled.refs] == [1.0, -1.0]

        compared = store.compare(artifact, listing, plot=tmp_path / "plot.svg", jobs=1)
        assert [pair.overall.cosine for pair in compared.pairs] == [1.0]
        assert (tmp_path / "plot.svg").read_text().startswith("<?xml")
        with pytest.raises(deltastore.errors.UsageError):
            store.compare(artifact)

        assert store.show(artifact).tags == ("good",)
        assert store.verify().problems == ()
        assert store.verify(artifact).checked > 0
        assert store.tag(listing, "best").tags == ("best", "good")
        assert store.untag(listing, "best").tags == ("good",)
        assert store.export(artifact, tmp_path / "layout").ref == "instruct:v1"
        assert store.du().total_bytes > 0
        assert store.reindex().versions == 1
        assert store.rm(artifact).version == 1
        assert store.list() == []


def test_the_default_store_is_the_home(isolated_home: Path) -> None:
    with deltastore.open() as store:
        assert store.list() == []
    assert (isolated_home / "store.json").exists()


def test_errors_are_within_reach(tmp_path: Path) -> None:
    with pytest.raises(deltastore.errors.StoreNotFoundError):
        deltastore.open(tmp_path / "none", create=False)


def test_scales_must_fit(models: Models, filled_store: Path, tmp_path: Path) -> None:
    with (
        deltastore.open(filled_store, create=False) as store,
        pytest.raises(deltastore.errors.UsageError),
    ):
        store.apply("instruct", base=models.base, out=tmp_path / "out", scale=[1, 2])


def test_the_packages_names() -> None:
    assert set(dir(deltastore)) == {"DeltaStore", "__version__", "errors", "open"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        deltastore.nothing  # noqa: B018
