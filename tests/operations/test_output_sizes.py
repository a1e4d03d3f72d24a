"""Sizes that config.json says anywhere follow the tensors, or the application is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operations.checkpoints import Tensors, load, save
from operations.test_vocabulary import WORDS, Model

import deltastore
from deltastore.checkpoint import TensorInfo, TensorSpec
from deltastore.errors import StructureMismatchError
from deltastore.manifest import TensorEntry
from deltastore.manifest.model import TensorSide
from deltastore.merging.recipes import Recipe
from deltastore.output.configuration.fit import Pair, fitted

PREFIX = "thinker.model"
EMBED, HEAD, BODY = f"{PREFIX}.embed_tokens.weight", "thinker.lm_head.weight", f"{PREFIX}.body.w"
PLACES: list[tuple[str, ...]] = [
    (),
    ("text_config",),
    ("decoder",),
    ("llm_config",),
    ("language_config",),
    ("thinker_config", "text_config"),
    ("a", "b", "c", "d"),
]
FIELDS = ["vocab_size", "n_vocab", "padded_vocab_size", "vocabulary_size"]
Config = dict[str, Any]
Shape = tuple[int, ...]


def tensors(seed: int, rows: int, head: int | None = None, **more: tuple[int, ...]) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = {EMBED: (rows, 24), HEAD: (head or rows, 24), BODY: (24, 24)} | more
    start = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=start) + torch.randn(shape, generator=generator) * 0.01
        for name, shape in shapes.items()
    }


def nested(where: Sequence[str], value: Config, **more: Any) -> Config:
    for key in reversed(where):
        value = {key: value}
    return {"model_type": "any", **value, **more}


def at(document: Any, *where: str) -> Any:
    for key in where:
        document = document[key]
    return document


def extract(
    store: deltastore.DeltaStore,
    place: Path,
    weights: Sequence[Tensors],
    configs: Sequence[Config | None],
    files: Sequence[Mapping[str, str | bytes]] = ({}, {}, {}),
) -> None:
    """Base, post and new base, and the delta."""
    for name, tensors_, config, more in zip(
        ("base", "post", "new"), weights, configs, files, strict=True
    ):
        save(place / name, tensors_, config=config, files=more)
    store.extract(place / "base", place / "post", name="d", force=True)


def applied(
    store: deltastore.DeltaStore, place: Path, refs: Any = "d", on: str = "new", **options: Any
) -> tuple[Config, Tensors]:
    out = place / f"out-{len(list(place.iterdir()))}"
    options = {"force": True} | options
    store.apply(refs, base=place / on, out=out, **options)
    return json.loads((out / "config.json").read_text()), load(out)


@pytest.mark.parametrize("where", PLACES, ids=".".join)
@pytest.mark.parametrize("rows", [57, 64])
def test_a_vocabulary_at_any_depth(
    store: deltastore.DeltaStore, tmp_path: Path, where: tuple[str, ...], rows: int
) -> None:
    docs = [nested(where, {"vocab_size": n, "hidden_size": 24}) for n in (60, rows, 60)]
    extract(store, tmp_path, [tensors(1, 60), tensors(2, rows), tensors(3, 60)], docs)
    for on in ("base", "new"):
        config, _ = applied(store, tmp_path, on=on)
        assert config == docs[1]
    for options in ({"skip_embeddings": True}, {"scale": 0.0}):
        assert applied(store, tmp_path, **options)[0] == docs[0]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("where", PLACES[:3], ids=".".join)
def test_a_vocabulary_of_which_post_says_nothing(
    store: deltastore.DeltaStore, tmp_path: Path, where: tuple[str, ...], field: str
) -> None:
    """It has no document, or one that was not changed with the tensors."""
    doc = nested(where, {field: 60, "hidden_size": 24, "type_vocab_size": 60})
    weights = [tensors(1, 60), tensors(2, 64), tensors(3, 60)]
    for post in (None, doc):
        place = tmp_path / str(post is None)
        extract(store, place, weights, [doc, post, doc])
        config, _ = applied(store, place)
        assert at(config, *where)[field] == 64
        assert at(config, *where)["type_vocab_size"] == 60


def test_of_several_vocabularies_the_one_of_the_tensor(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    """Encoder and decoder say the same number, and only the decoder's tensor has grown."""

    def weights(seed: int, rows: int) -> Tensors:
        own = tensors(seed, 60)
        more = tensors(seed, rows)
        return {
            "encoder.model.embed_tokens.weight": own[EMBED],
            "decoder.model.embed_tokens.weight": more[EMBED],
            "w": own[BODY],
        }

    def doc(rows: int) -> Config:
        return {"encoder": {"vocab_size": 60}, "decoder": {"vocab_size": rows}}

    for post in (doc(64), None, doc(60)):
        place = tmp_path / str(post)
        extract(
            store, place, [weights(1, 60), weights(2, 64), weights(3, 60)], [doc(60), post, doc(60)]
        )
        assert applied(store, place)[0] == doc(64)


def test_defaults_that_are_left_out(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    """transformers leaves out of nested documents what is its default."""
    weights = [tensors(1, 60), tensors(2, 64), tensors(3, 60)]
    without, said = ({"text_config": {"hidden_size": 24} | v} for v in ({}, {"vocab_size": 64}))
    extract(store, tmp_path / "to", weights, [without, said, without])
    assert applied(store, tmp_path / "to")[0] == said
    assert applied(store, tmp_path / "to", skip_embeddings=True)[0] == without
    weights = [tensors(1, 64), tensors(2, 60), tensors(3, 64)]
    extract(store, tmp_path / "from", weights, [said, without, said])
    assert applied(store, tmp_path / "from")[0]["text_config"]["vocab_size"] == 60


def test_two_spellings(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    """The pair says it at the top, the new base in a part."""
    flat = [{"vocab_size": n, "hidden_size": 24} for n in (60, 64)]
    new = {"text_config": {"vocab_size": 60, "hidden_size": 24}}
    extract(store, tmp_path, [tensors(1, 60), tensors(2, 64), tensors(3, 60)], [*flat, new])
    assert applied(store, tmp_path)[0]["text_config"]["vocab_size"] == 64
    assert "vocab_size" not in applied(store, tmp_path)[0]


def test_rows_to_spare_that_post_gave_up(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    docs = [{"vocab_size": n} for n in (500, 503, 500)]
    extract(store, tmp_path, [tensors(1, 600), tensors(2, 503), tensors(3, 600)], docs)
    assert applied(store, tmp_path)[0] == docs[1]


def test_rows_by_token(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    """The new base has other tokens; the output has neither its rows nor post's."""
    words = [*WORDS], [*WORDS, "<a>", "<b>"], [*reversed(WORDS), "x", "y", "z"]
    files = [Model(each).tokenizer for each in words]
    counts = [len(each) for each in words]
    where = ("thinker_config", "text_config")
    docs = [nested(where, {"vocab_size": n, "hidden_size": 24}) for n in counts]
    extract(store, tmp_path, [tensors(i, n) for i, n in enumerate(counts)], docs, files)
    config, out = applied(store, tmp_path)
    assert at(config, *where)["vocab_size"] == len(out[EMBED]) == counts[2] + 2
    config, out = applied(store, tmp_path, skip_embeddings=True)
    assert at(config, *where)["vocab_size"] == len(out[EMBED]) == counts[2]


def test_of_several_deltas_any_may_change_a_size(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    docs = [nested(("llm_config",), {"vocab_size": n}) for n in (60, 64, 60)]
    first = tensors(1, 60)
    extract(store, tmp_path, [first, tensors(2, 64), tensors(3, 60)], docs)
    save(tmp_path / "other", first | {BODY: first[BODY] * 1.01}, config=docs[0])
    store.extract(tmp_path / "base", tmp_path / "other", name="other")
    for refs in (["d", "other"], ["other", "d"]):
        assert applied(store, tmp_path, refs)[0] == docs[1]


def test_one_field_for_two_tensors_of_which_one_was_left_out(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    docs = [nested(("text_config",), {"vocab_size": n}) for n in (60, 64, 60)]
    weights = [tensors(1, 60), tensors(2, 64), tensors(3, 60)]
    weights[2][HEAD] = torch.zeros(60, 25)
    extract(store, tmp_path, weights, docs)
    with pytest.raises(
        StructureMismatchError, match=r"text_config\.vocab_size says the rows of"
    ) as caught:
        applied(store, tmp_path, partial=True, dry_run=True)
    assert (caught.value.exit_code, "--skip-embeddings" in caught.value.hint) == (31, True)
    config, _ = applied(store, tmp_path, partial=True, skip_embeddings=True)
    assert config == docs[0]


def test_a_width_that_nothing_says_afterwards(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    doc = nested(("text_config",), {"vocab_size": 60, "hidden_size": 24, "inner": 48})
    weights = [tensors(i, 60, up=(48 + 8 * (i == 2), 24)) for i in (1, 2, 3)]
    for post in (doc, None):
        place = tmp_path / str(post is None)
        extract(store, place, weights, [doc, post, doc])
        with pytest.raises(StructureMismatchError) as caught:
            applied(store, place, dry_run=True)
        error = caught.value
        assert error.facts == {
            "tensor": "up",
            "dimension": 0,
            "field": "text_config.inner",
            "expected": 56,
            "got": 48,
        }
        assert "up" in error.message
        assert "`--scale-for 'up=0'`" in error.hint
        assert not [path for path in place.iterdir() if path.name.startswith("out")]
        config, out = applied(store, place, scale_for={"up": 0})
        assert (config, len(out["up"])) == (doc, 48)
        # Post's own document beside post's own tensors is post, whatever it says.
        assert store.apply("d", base=place / "base", out=place / "restored").restored


def test_what_no_field_said_is_not_contradicted(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    doc = nested(("text_config",), {"vocab_size": 60, "hidden_size": 24, "small": 9})
    weights = [
        tensors(i, 60, projector=(40 + i, 24), tiny=(9 + i, 3), table=(1, 5 + i, 24))
        for i in (0, 1, 0)
    ]
    extract(store, tmp_path, weights, [doc, doc, doc])
    assert applied(store, tmp_path)[0] == doc


def test_a_field_that_cannot_say_it(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    """A list for each layer, which the new base has otherwise than the source base."""

    def layers(seed: int, count: int) -> Tensors:
        return tensors(seed, 60, **{f"m.layers.{i}.w": (24, 24) for i in range(count)})

    docs = [{"kinds": ["a"] * 2}, {"kinds": ["a", "a", "b"]}, {"kinds": ["b", "a"]}]
    for document, count in zip(docs, (2, 3, 2), strict=True):
        document["num_layers"] = count
    weights = [layers(1, 2), layers(2, 3), layers(3, 2)]
    extract(store, tmp_path / "other", weights, docs)
    with pytest.raises(StructureMismatchError, match="kinds"):
        applied(store, tmp_path / "other")
    extract(store, tmp_path / "same", weights, [docs[0], docs[1], docs[0]])
    assert applied(store, tmp_path / "same")[0] == docs[1]


def test_half_a_layer_is_refused(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    def layers(seed: int, count: int) -> Tensors:
        return tensors(
            seed, 60, **{f"m.layers.{i}.{p}": (24, 24) for i in range(count) for p in "uv"}
        )

    docs = [{"num_layers": count} for count in (2, 3, 2)]
    extract(store, tmp_path, [layers(1, 2), layers(2, 3), layers(3, 2)], docs)
    with pytest.raises(StructureMismatchError, match=r"m\.layers\.2 would be there by half"):
        applied(store, tmp_path, scale_for={"*.u": 0})
    assert applied(store, tmp_path)[0] == docs[1]
    assert applied(store, tmp_path, scale=0.0)[0] == docs[2]


def test_blocks_that_are_not_counted_stay_so(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    """One block more than the field says, as for the prediction of several tokens."""

    def layers(seed: int, count: int) -> Tensors:
        return tensors(seed, 60, **{f"m.layers.{i}.w": (24, 24) for i in range(count)})

    doc = {"num_hidden_layers": 2}
    extract(store, tmp_path / "kept", [layers(i, 3) for i in (1, 2, 3)], [doc, doc, doc])
    assert applied(store, tmp_path / "kept")[0] == doc
    extract(store, tmp_path / "gone", [layers(1, 3), layers(2, 2), layers(3, 3)], [doc, doc, doc])
    assert applied(store, tmp_path / "gone")[0] == doc


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 70) | st.integers() | st.text(max_size=3),
    lambda x: (
        st.lists(x, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text_config", "id2label", "rope", "a", "0"]), x, max_size=3
        )
    ),
    max_leaves=6,
)
KEYS = ["vocab_size", "id2label", "num_labels", "text_config", "num_layers", "layer_types", "x"]
DOCUMENTS = st.none() | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4)


@settings(deadline=None)
@given(documents=st.tuples(*[DOCUMENTS] * 3), own=DOCUMENTS.filter(lambda one: one is not None))
def test_documents_of_strangers(documents: tuple[Config | None, ...], own: Config) -> None:
    """They are fitted or refused, whatever they are, and stay what they were."""

    def entry(name: str, before: Shape | None, after: Shape | None) -> TensorEntry:
        sides = [None if s is None else TensorSide("F32", s, "0" * 64) for s in (before, after)]
        kind = "added" if before is None else "removed" if after is None else "resized"
        return TensorEntry(name, kind, *sides)

    table = {
        EMBED: entry(EMBED, (60, 24), (64, 24)),
        "score.weight": entry("score.weight", (2, 24), (3, 24)),
        "m.layers.0.w": entry("m.layers.0.w", (24, 24), (48, 24)),
        "m.layers.1.w": entry("m.layers.1.w", None, (24, 24)),
        "m.layers.0.b": entry("m.layers.0.b", (24,), None),
    }
    sides = {n: (e.base, e.post) for n, e in table.items()}
    base = {n: TensorInfo(n, "F32", b.shape, 0, 0, 0) for n, (b, _) in sides.items() if b}
    recipes = {
        n: Recipe(TensorSpec(n, "F32", p.shape), base.get(n)) for n, (_, p) in sides.items() if p
    }
    before, after, output = documents
    copies = json.dumps([own, before, after, output])
    with suppress(StructureMismatchError):
        fitted(own, output or own, base, recipes, [Pair(before, after, table)])
    assert json.dumps([own, before, after, output]) == copies
