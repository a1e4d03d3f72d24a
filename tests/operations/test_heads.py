"""Heads that are tied on one side, where not all of a delta is applied or bases look alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from operations import oracle
from operations.checkpoints import assert_same_bits, load, save
from operations.oracle import Step
from operations.test_vocabulary import EMBED, HEAD, WORDS, Model

import deltastore
from deltastore.errors import StructureMismatchError

TIED, UNTIED = Model(WORDS, tied=True), Model(WORDS)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[deltastore.DeltaStore]:
    with deltastore.open(tmp_path / "store") as store:
        yield store


def test_a_restore_patch_is_not_used_on_a_head_of_the_new_base_own(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    """The patch is for base's embeddings; here the delta is added to another head."""
    before, after = TIED.save(tmp_path / "base", 0), UNTIED.weights(1)
    # Every second difference is rounded, and needs the patch.
    after[HEAD][::2] = (before[EMBED][::2].double() * 1e-9).bfloat16()
    save(tmp_path / "post", after, config=UNTIED.config, files=UNTIED.tokenizer)
    own = before | {HEAD: UNTIED.weights(2)[HEAD]}
    save(tmp_path / "new", own, config=UNTIED.config, files=UNTIED.tokenizer)
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    result = store.apply("delta", base=tmp_path / "new", out=tmp_path / "out")
    want = oracle.applied(own[HEAD], [Step(before[EMBED], after[HEAD])])
    assert_same_bits({HEAD: load(tmp_path / "out")[HEAD]}, {HEAD: want})
    assert not result.restored
    assert store.apply("delta", base=tmp_path / "base", out=tmp_path / "again").restored
    assert_same_bits(load(tmp_path / "again"), after)


@pytest.mark.parametrize("new", [TIED, UNTIED])
@pytest.mark.parametrize("sides", [(TIED, UNTIED), (UNTIED, TIED)])
@pytest.mark.parametrize("options", [{"skip_embeddings": True}, {"scale": 0.0}])
def test_a_head_that_is_left_out_leaves_tying_as_it_was(
    store: deltastore.DeltaStore,
    tmp_path: Path,
    options: dict[str, Any],
    sides: tuple[Model, Model],
    new: Model,
) -> None:
    """Otherwise a head would be drawn at random, or one that is there would be ignored."""
    sides[0].save(tmp_path / "base", 0)
    sides[1].save(tmp_path / "post", 1)
    new.save(tmp_path / "new", 2)
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    store.apply("delta", base=tmp_path / "new", out=tmp_path / "out", **options)
    assert (HEAD in load(tmp_path / "out")) is not new.tied
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is new.tied


def test_a_copy_of_the_embeddings_that_base_alone_stored_is_no_head_that_post_removed(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    before = TIED.weights(0)
    before[HEAD] = before[EMBED].clone()
    save(tmp_path / "base", before, config=TIED.config, files=TIED.tokenizer)
    after, own = TIED.save(tmp_path / "post", 1), UNTIED.save(tmp_path / "new", 2)
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    store.apply("delta", base=tmp_path / "new", out=tmp_path / "out")
    out = load(tmp_path / "out")
    for name in (EMBED, HEAD):
        want = oracle.applied(own[name], [Step(before[EMBED], after[EMBED])])
        assert_same_bits({name: out[name]}, {name: want})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert store.apply("delta", base=tmp_path / "base", out=tmp_path / "again").restored


def test_a_new_base_that_has_no_head_and_ties_none_gets_none_of_its_embeddings(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    TIED.save(tmp_path / "base", 0)
    UNTIED.save(tmp_path / "post", 1)
    headless = TIED.config | {"tie_word_embeddings": False}
    save(tmp_path / "new", TIED.weights(2), config=headless, files=TIED.tokenizer)
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    with pytest.raises(StructureMismatchError, match="1 missing in the new base; the first is lm_"):
        store.apply("delta", base=tmp_path / "new", out=tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        "predictions.decoder.weight",
        "generator_lm_head.weight",
        "vocab_projector.weight",
        "transformer.output_layer.weight",
    ],
)
def test_heads_of_any_name_go_by_token(
    store: deltastore.DeltaStore, tmp_path: Path, name: str
) -> None:
    """As ALBERT, ELECTRA, DistilBERT and ChatGLM call theirs."""
    tensors = []
    for seed, (place, words) in enumerate((("base", WORDS), ("post", WORDS), ("new", WORDS[::-1]))):
        one = Model(words)
        weights = one.weights(seed)
        tensors.append(weights.pop(HEAD))
        weights[name] = tensors[-1]
        save(tmp_path / place, weights, config=one.config, files=one.tokenizer)
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    store.apply("delta", base=tmp_path / "new", out=tmp_path / "out", force=True)
    want = oracle.applied(tensors[2], [Step(tensors[0].flip(0), tensors[1].flip(0))])
    assert_same_bits({name: load(tmp_path / "out")[name]}, {name: want})
