"""Which stored deltas fit a base, and a pair of models in place of a ref."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from operations.checkpoints import Tensors, load, save
from operations.test_lineage import model, moved
from operations.test_vocabulary import WORDS, Model

import deltastore
from deltastore.cli.main import main
from deltastore.errors import CheckpointNotFoundError, RefAmbiguousError, RefNotFoundError
from deltastore.operations.list import ref_of_pair
from deltastore.store import open_store


def pair(directory: Path, name: str, base: Tensors) -> tuple[Path, Path]:
    directory = directory / name
    return save(directory / "base", base), save(directory / f"{name}-post", moved(base, 0.01))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A store with a near delta in two versions, a far one, a stranger and one of other shapes."""
    near = moved(model(0), 0.05, seed=1)
    with deltastore.open(tmp_path / "store") as store:
        store.extract(*pair(tmp_path, "near", near), name="near")
        other = save(tmp_path / "near" / "second-post", moved(near, 0.02))
        store.extract(tmp_path / "near" / "base", other, name="near")
        store.extract(*pair(tmp_path, "far", moved(model(0), 1.2, seed=2)), name="far")
        store.extract(*pair(tmp_path, "stranger", model(7)), name="stranger")
        store.extract(*pair(tmp_path, "own", model(0)), name="own")
        shapes = model(0) | {"head.weight": torch.ones(8, 8).bfloat16()}
        store.extract(*pair(tmp_path, "shapes", shapes), name="shapes")
    save(tmp_path / "new", model(0))
    return tmp_path


def test_the_nearest_come_first_and_each_says_why_not(place: Path) -> None:
    with deltastore.open(place / "store") as store:
        found = store.resolve(place / "new")
    assert [(c.ref, c.compatible) for c in found] == [
        ("own:v1", True),
        ("near:v2", True),
        ("near:v1", True),
        ("far:v1", True),
        ("shapes:v1", False),
        ("stranger:v1", False),
    ]
    by_ref = {c.ref: c for c in found}
    verdicts = {ref: c.lineage["verdict"] for ref, c in by_ref.items() if c.lineage}
    assert verdicts["own:v1"] == "same"
    assert verdicts["near:v1"] == "related"
    assert verdicts["far:v1"] == "distant"
    assert verdicts["stranger:v1"] == "unrelated"
    assert by_ref["near:v1"].reasons == []
    assert "test the result" in by_ref["far:v1"].reasons[0]
    assert "head.weight" in by_ref["shapes:v1"].reasons[0]
    assert "unrelated" in by_ref["stranger:v1"].reasons[0]


def test_compatible_is_what_apply_takes(place: Path) -> None:
    with deltastore.open(place / "store") as store:
        for candidate in store.resolve(place / "new"):
            out = place / candidate.ref.replace(":", "-")
            try:
                store.apply(candidate.ref, base=place / "new", out=out)
            except deltastore.errors.IncompatibleError:
                assert not candidate.compatible
            else:
                assert candidate.compatible


TIED, UNTIED = Model(WORDS, tied=True), Model(WORDS)
GROWN, BACKWARDS = Model([*WORDS, "x"]), Model(WORDS[::-1])


@pytest.mark.parametrize(
    ("sides", "new", "own", "theirs", "compatible"),
    [
        (UNTIED, TIED, {"tie_word_embeddings": False}, {}, False),
        (TIED, UNTIED, {}, {}, True),
        (UNTIED, GROWN, {}, {}, True),
        (UNTIED, BACKWARDS, {}, {}, True),
    ],
    ids=["no head", "tied base", "grown", "other rows"],
)
def test_compatible_is_what_apply_takes_of_language_models(
    tmp_path: Path,
    sides: Model,
    new: Model,
    own: dict[str, Any],
    theirs: dict[str, Any],
    compatible: bool,
) -> None:
    for name, one, seed, said in (
        ("base", sides, 0, theirs),
        ("post", sides, 1, theirs),
        ("new", new, 2, own),
    ):
        config = one.config | said
        save(tmp_path / name, one.weights(seed), config=config, files=one.tokenizer)
    with deltastore.open(tmp_path / "store") as store:
        store.extract(tmp_path / "base", tmp_path / "post", name="delta")
        (candidate,) = store.resolve(tmp_path / "new")
        assert candidate.compatible is compatible
        if not compatible:
            with pytest.raises(deltastore.errors.IncompatibleError):
                store.apply("delta", base=tmp_path / "new", out=tmp_path / "out")
            return
        result = store.apply("delta", base=tmp_path / "new", out=tmp_path / "out")
    figures = {key: result.lineage[0][key] for key in candidate.lineage or {}}
    assert figures == candidate.lineage


@pytest.mark.parametrize("tokenizer", [{"tokenizer.json": "none"}, {"tokenizer_config.json": "{}"}])
def test_tokens_that_cannot_be_read_fit_nothing(tmp_path: Path, tokenizer: dict[str, str]) -> None:
    UNTIED.save(tmp_path / "base", 0)
    UNTIED.save(tmp_path / "post", 1)
    save(tmp_path / "new", GROWN.weights(2), config=GROWN.config, files=tokenizer)
    with deltastore.open(tmp_path / "store") as store:
        store.extract(tmp_path / "base", tmp_path / "post", name="delta")
        assert not store.resolve(tmp_path / "new")[0].compatible
        with pytest.raises(deltastore.errors.DeltastoreError):
            store.apply("delta", base=tmp_path / "new", out=tmp_path / "out")


def test_parts_are_not_read(place: Path) -> None:
    """Ranking reads manifests, configs and samples; all other blobs may be anywhere."""
    with open_store(place / "store") as store:
        for artifact in store.artifacts():
            manifest, config = store.load(artifact.digest)
            for number, layer in enumerate(manifest.layers):
                if number == config.samples_layer:
                    continue
                path = place / "store" / "blobs" / "sha256" / layer.digest.partition(":")[2]
                path.unlink(missing_ok=True)
    with deltastore.open(place / "store") as store:
        assert store.resolve(place / "new")[0].ref == "own:v1"


def test_a_damaged_artifact_is_named_and_the_others_ranked(place: Path) -> None:
    with open_store(place / "store") as store:
        digest = store.resolve("own").digest
        manifest, _ = store.load(digest)
        path = place / "store" / "blobs" / "sha256" / manifest.config.digest.partition(":")[2]
    path.chmod(0o644)
    path.write_bytes(b"{}")
    with deltastore.open(place / "store") as store:
        found = {c.ref: c for c in store.resolve(place / "new")}
    assert not found["own:v1"].compatible
    assert found["own:v1"].lineage is None
    assert found["near:v1"].compatible


def test_a_base_that_is_not_there(place: Path) -> None:
    with deltastore.open(place / "store") as store, pytest.raises(CheckpointNotFoundError):
        store.resolve(place / "nowhere")


def test_on_the_command_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--store", str(place / "store"), "resolve", "--base", str(place / "new")]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0].keys() == {"ref", "digest", "compatible", "reasons", "lineage"}
    assert main(arguments) == 0
    assert "own:v1" in capsys.readouterr().out.splitlines()[1]
    assert main(["-q", *arguments]) == 0
    assert capsys.readouterr().out.split() == ["own:v1", "near:v2", "near:v1", "far:v1"]


def test_a_pair_stands_for_its_ref(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--store", str(place / "store"), "--json", "apply", "--base", str(place / "new")]
    out = place / "out"
    names = ["--from-base", "base", "--from-post", "second-post"]
    assert main([*arguments, *names, "--out", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["refs"][0]["ref"] == "near:v2"
    want = place / "want"
    assert main([*arguments, "near:v2", "--out", str(want)]) == 0
    assert all(torch.equal(a, load(want)[name]) for name, a in load(out).items())
    for wrong in (names[:2], ["near", *names], []):
        assert main([*arguments, *wrong, "--out", str(place / "no")]) == 2
    assert not (place / "no").exists()


def test_a_pair_that_is_missing_or_means_several(place: Path) -> None:
    with open_store(place / "store") as store:
        with pytest.raises(RefNotFoundError, match="no delta from base to nothing"):
            ref_of_pair(store, "base", "nothing")
        with pytest.raises(RefAmbiguousError, match=r"near:v2.*own:v1|own:v1.*near:v2"):
            ref_of_pair(store, "base", "*")
        assert ref_of_pair(store, "base", "near-post") == "near:v1"
