"""Rows of embeddings and heads go by token string; heads may be tied or not on every side."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import oracle
from operations.checkpoints import Tensors, assert_same_bits, load, save
from operations.oracle import Step

import deltastore
from deltastore.cli.main import main
from deltastore.errors import (
    DeltaConflictError,
    StructureMismatchError,
    TokenizerError,
    UsageError,
)
from deltastore.tokenizer.matching import match_tokens
from deltastore.tokenizer.rows import NONE, runs

EMBED, HEAD, INNER, NORM = (
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.norm.weight",
)
WORDS = [f"w{i}" for i in range(40)]


@dataclass(frozen=True)
class Model:
    """A small language model: its tokens in the order of their ids, and rows after them."""

    tokens: Sequence[str]
    padding: int = 0
    tied: bool = False
    width: int = 16
    dtype: torch.dtype = torch.bfloat16
    added: Sequence[str] = ()
    """Tokens that the tokenizer was given later; they follow on the others."""

    @property
    def all(self) -> list[str]:
        return [*self.tokens, *self.added]

    @property
    def rows(self) -> int:
        return len(self.all) + self.padding

    def weights(self, seed: int, like: dict[str, torch.Tensor] | None = None) -> Tensors:
        """Weights in which a token's row depends on its string, and a little on ``seed``."""
        generator = torch.Generator().manual_seed(seed)

        def near(key: str, *shape: int) -> torch.Tensor:
            own = torch.Generator().manual_seed(sum(map(ord, key)) * 7919 + len(key))
            value = 0.02 * torch.randn(*shape, generator=own, dtype=torch.float64)
            noise = 1e-3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
            return (value + (noise if seed else 0)).to(self.dtype)

        def table(key: str) -> torch.Tensor:
            names = [*self.all, *(f"padding {i}" for i in range(self.padding))]
            return torch.stack([near(f"{key} {name}", self.width) for name in names])

        tensors = {
            EMBED: table("embed"),
            INNER: near("inner", 48, self.width),
            NORM: near("norm", self.width),
        }
        if not self.tied:
            # Near the embeddings, as a new base that ties them is to be near this one.
            tensors[HEAD] = (table("embed").double() + 0.3 * table("head").double()).to(self.dtype)
        return tensors

    @property
    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.rows,
            "hidden_size": self.width,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
        }

    @property
    def tokenizer(self) -> dict[str, str | bytes]:
        document = {
            "version": "1.0",
            "added_tokens": [
                {
                    "id": len(self.tokens) + i,
                    "content": token,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for i, token in enumerate(self.added)
            ],
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {
                "type": "WordLevel",
                "vocab": {token: i for i, token in enumerate(self.tokens)},
                "unk_token": self.tokens[0],
            },
        }
        return {"tokenizer.json": json.dumps(document)}

    def save(self, place: Path, seed: int) -> Tensors:
        tensors = self.weights(seed)
        save(place, tensors, config=self.config, files=self.tokenizer)
        return tensors


def head(tensors: Tensors) -> torch.Tensor:
    """What the model computes its logits with."""
    return tensors.get(HEAD, tensors[EMBED])


def by_token(
    models: tuple[Model, Model, Model],
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    tokens: Sequence[str],
    scale: float,
) -> torch.Tensor:
    """The output's rows for ``tokens``, and the new base's padding after them, by hand."""
    _, post, new = models
    source, target, own = tables
    rows = []
    for index, token in enumerate(tokens):
        if token in new.all:
            row = own[new.all.index(token)]
        elif token in post.all and post.all.index(token) >= len(source):
            rows.append(target[post.all.index(token)])
            continue
        else:
            row = own[index]  # a padding row of the new base
        at = post.all.index(token) if token in post.all else None
        if at is not None and at < min(len(source), len(target)):
            row = oracle.applied(row, [Step(source[at], target[at], scale)])
        elif at is not None:
            row = target[at]
        rows.append(row)
    rows += list(own[len(tokens) :])
    return torch.stack(rows)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[deltastore.DeltaStore]:
    with deltastore.open(tmp_path / "store") as opened:
        yield opened


def shuffled(words: Sequence[str]) -> list[str]:
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(3))
    return [words[i] for i in order]


CASES = {
    "reordered": (Model(WORDS), Model(WORDS), Model(shuffled(WORDS)), []),
    "grown": (Model(WORDS), Model(WORDS), Model([*WORDS, "x", "y"]), []),
    "shrunk": (Model(WORDS), Model(WORDS), Model(WORDS[:30]), []),
    "tokens before all others": (Model(WORDS), Model(WORDS), Model(["x", "y", *WORDS]), []),
    "other padding": (Model(WORDS, 8), Model(WORDS, 8), Model(WORDS, 24), []),
    "post added rows": (
        Model(WORDS),
        Model(WORDS, added=["<a>", "<b>"]),
        Model([*WORDS, "x"]),
        ["<a>", "<b>"],
    ),
    "post added rows, and the new base has padding": (
        Model(WORDS),
        Model(WORDS, added=["<a>", "<b>"]),
        Model([*WORDS, "x"], 5),
        ["<a>", "<b>"],
    ),
    "post added rows, one of which the new base has": (
        Model(WORDS),
        Model(WORDS, added=["<a>", "<b>"]),
        Model(["x", *WORDS], added=["<b>"]),
        ["<a>"],
    ),
    "post used padding rows": (
        Model(WORDS, 8),
        Model(WORDS, 7, added=["<a>"]),
        Model([*WORDS, "x"], 4),
        ["<a>"],
    ),
    "post has fewer tokens": (Model(WORDS), Model(WORDS[:33]), Model([*WORDS, "x"]), []),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1.0, -0.5])
@pytest.mark.parametrize("case", CASES)
def test_rows_go_by_token(
    store: deltastore.DeltaStore, tmp_path: Path, case: str, scale: float, dtype: torch.dtype
) -> None:
    *given_models, added = CASES[case]
    base, post, new = (Model(m.tokens, m.padding, dtype=dtype, added=m.added) for m in given_models)
    before, after = base.save(tmp_path / "base", 0), post.save(tmp_path / "post", 1)
    own = new.save(tmp_path / "new", 2)
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    result = store.apply("delta", base=tmp_path / "new", out=tmp_path / "out", scale=scale)
    out = load(tmp_path / "out")
    tokens = [*new.all, *added]
    for name in (EMBED, HEAD):
        want = by_token((base, post, new), (before[name], after[name], own[name]), tokens, scale)
        assert_same_bits({name: out[name]}, {name: want})
    assert_same_bits(
        {INNER: out[INNER]},
        {INNER: oracle.applied(own[INNER], [Step(before[INNER], after[INNER], scale)])},
    )
    (words,) = result.vocabulary
    assert words["verdict"] == "matched"
    assert words["added"] == {"count": len(added), "tokens": added}
    common = set(new.all) & set(post.all)
    assert words["matched"] == len(common)
    assert set(words["lost"]["tokens"]) == set(post.all) - set(new.all) - set(added)
    assert result.lineage[0]["verdict"] == "related"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == len(out[EMBED])
    vocabulary = ids(tmp_path / "out")
    assert {t: vocabulary[t] for t in tokens} == {t: i for i, t in enumerate(tokens)}


def ids(directory: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    found: dict[str, int] = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab()
    return found


def test_rows_of_tokens_under_an_unknown_name_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = "model.transformer.ff_out.weight"
    for side, one, seed in (
        ("base", Model(WORDS), 0),
        ("post", Model(WORDS), 1),
        ("new", Model(shuffled(WORDS)), 2),
    ):
        tensors = one.weights(seed)
        tensors[odd] = tensors.pop(HEAD)
        save(tmp_path / side, tensors, config=one.config, files=one.tokenizer)
    place = ["--store", str(tmp_path / "store")]
    pair = ["--base", str(tmp_path / "base"), "--post", str(tmp_path / "post"), "--name", "x"]
    assert main([*place, "extract", *pair]) == 0
    capsys.readouterr()
    target = ["--base", str(tmp_path / "new"), "--out", str(tmp_path / "out"), "--force"]
    assert main([*place, "apply", "x", *target]) == 0
    assert f"{odd} may have a place for each token" in capsys.readouterr().err


def test_several_embeddings_and_another_tokenizer_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for side, one, seed in (
        ("base", Model(WORDS), 0),
        ("post", Model(WORDS), 1),
        ("new", Model(shuffled(WORDS)), 2),
    ):
        tensors = one.weights(seed)
        tensors["audio.embed_tokens.weight"] = tensors[INNER].clone()
        save(tmp_path / side, tensors, config=one.config, files=one.tokenizer)
    place = ["--store", str(tmp_path / "store")]
    pair = ["--base", str(tmp_path / "base"), "--post", str(tmp_path / "post"), "--name", "x"]
    assert main([*place, "extract", *pair]) == 0
    for base, told in (("new", True), ("base", False)):
        capsys.readouterr()
        target = ["--base", str(tmp_path / base), "--out", str(tmp_path / f"{base}.out")]
        assert main([*place, "apply", "x", *target, "--force"]) == 0
        said = "The tokenizer is not that of the base of x:v1, and rows go by index"
        assert (said in capsys.readouterr().err) is told


def test_a_template_that_the_last_delta_lacks_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Model(WORDS)
    one.save(tmp_path / "base", 0)
    place = ["--store", str(tmp_path / "store")]
    for name, seed, files in (("chat", 1, {"chat_template.jinja": "x"}), ("plain", 2, {})):
        save(tmp_path / name, one.weights(seed), config=one.config, files=one.tokenizer | files)
        pair = ["--base", str(tmp_path / "base"), "--post", str(tmp_path / name)]
        assert main([*place, "extract", *pair, "--name", name]) == 0
    for refs, told in ((["chat", "plain"], True), (["plain", "chat"], False)):
        capsys.readouterr()
        target = ["--base", str(tmp_path / "base"), "--out", str(tmp_path / "-".join(refs))]
        assert main([*place, "apply", *refs, *target]) == 0
        assert ("chat template: that of delta 1 is left out" in capsys.readouterr().err) is told


def test_rows_that_cross_chunks(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    """A chunk has 2**19 elements: rows of 480 do not end where chunks do."""
    words = [f"t{i}" for i in range(2300)]
    base = Model(words, width=480, tied=True)
    post = Model(words, width=480, tied=True, added=["<a>"])
    new = Model([*words[1000:], "x", *words[:1000]], width=480, tied=True)
    before, after = base.save(tmp_path / "base", 0), post.save(tmp_path / "post", 1)
    own = new.save(tmp_path / "new", 2)
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    store.apply("delta", base=tmp_path / "new", out=tmp_path / "out", jobs=3)
    want = by_token(
        (base, post, new), (before[EMBED], after[EMBED], own[EMBED]), [*new.all, "<a>"], 1.0
    )
    assert_same_bits({EMBED: load(tmp_path / "out")[EMBED]}, {EMBED: want})


@pytest.mark.parametrize(("base", "post", "new"), list(itertools.product([True, False], repeat=3)))
@pytest.mark.parametrize("grown", [False, True])
def test_tied_and_untied_heads(
    store: deltastore.DeltaStore, tmp_path: Path, base: bool, post: bool, new: bool, grown: bool
) -> None:
    """What the output's head computes with is new head + (post's head - base's head).

    Only where post has tied its head to its embeddings, and base had not, the output does as post
    did.
    """
    added = ["<a>"] if grown else []
    models = (
        Model(WORDS, tied=base),
        Model(WORDS, tied=post, added=added),
        Model([*WORDS, "x"] if grown else WORDS, tied=new),
    )
    before, after = models[0].save(tmp_path / "base", 0), models[1].save(tmp_path / "post", 1)
    own = models[2].save(tmp_path / "new", 2)
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    result = store.apply("delta", base=tmp_path / "new", out=tmp_path / "out")
    out = load(tmp_path / "out")
    tokens = [*models[2].all, *added]
    tables = (before[EMBED], after[EMBED], own[EMBED])
    assert_same_bits({EMBED: out[EMBED]}, {EMBED: by_token(models, tables, tokens, 1.0)})
    tied = (post and not base) or (base and post and new)
    assert (HEAD not in out) == tied
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is tied
    if not tied:
        heads = (head(before), head(after), head(own))
        assert_same_bits({HEAD: out[HEAD]}, {HEAD: by_token(models, heads, tokens, 1.0)})
    assert result.left_out == []
    if not grown:
        again = store.apply("delta", base=tmp_path / "base", out=tmp_path / "again")
        assert again.restored
        assert_same_bits(load(tmp_path / "again"), after)


def test_a_new_base_without_a_head_that_ties_nothing_is_refused(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    Model(WORDS).save(tmp_path / "base", 0)
    Model(WORDS).save(tmp_path / "post", 1)
    new = Model(WORDS, tied=True)
    save(tmp_path / "new", new.weights(2), config=new.config | {"tie_word_embeddings": False})
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    with pytest.raises(StructureMismatchError, match="lm_head"):
        store.apply("delta", base=tmp_path / "new", out=tmp_path / "out")


def test_skip_embeddings(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    base, new = Model(WORDS), Model([*WORDS, "x"])
    before, after = base.save(tmp_path / "base", 0), base.save(tmp_path / "post", 1)
    own = new.save(tmp_path / "new", 2)
    (tmp_path / "new" / "tokenizer.json").write_text("no tokenizer")
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json") as caught:
        store.apply("delta", base=tmp_path / "new", out=tmp_path / "out")
    assert "--skip-embeddings" in caught.value.hint
    assert not (tmp_path / "out").exists()
    result = store.apply("delta", base=tmp_path / "new", out=tmp_path / "out", skip_embeddings=True)
    assert result.skipped == [HEAD, EMBED]
    assert result.vocabulary[0]["verdict"] == "skipped"
    out = load(tmp_path / "out")
    assert_same_bits({n: out[n] for n in (EMBED, HEAD)}, {n: own[n] for n in (EMBED, HEAD)})
    for name in (INNER, NORM):
        want = oracle.applied(own[name], [Step(before[name], after[name])])
        assert_same_bits({name: out[name]}, {name: want})


def test_ids_of_post_stay_where_nobody_has_a_tokenizer(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    """Nothing says that they mean something else, with rows that are skipped as without."""
    one = Model(WORDS)
    for side, seed, end in (("base", 0, 1), ("post", 1, 3), ("new", 2, 1)):
        files = {"generation_config.json": json.dumps({"eos_token_id": [end, 2]})}
        save(tmp_path / side, one.weights(seed), config=one.config, files=files)
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    store.apply("delta", base=tmp_path / "new", out=tmp_path / "out", skip_embeddings=True)
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written == {"eos_token_id": [3, 2]}


def test_without_tokenizers_other_numbers_of_rows_are_refused(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    for side, words, seed in (("base", WORDS, 0), ("post", WORDS, 1), ("new", WORDS[1:], 2)):
        one = Model(words)
        save(tmp_path / side, one.weights(seed), config=one.config)
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    with pytest.raises(StructureMismatchError, match="2 of another shape") as caught:
        store.apply("delta", base=tmp_path / "new", out=tmp_path / "out")
    assert "--skip-embeddings" in caught.value.hint


def test_a_token_that_post_renamed(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    """Reserved tokens get their meaning in post-training: the row stays, its name changes."""
    reserved = [f"<reserved {i}>" for i in range(3)]
    base = Model(WORDS, added=reserved)
    post = Model(WORDS, added=["<|user|>", *reserved[1:]])
    new = Model(["x", *WORDS], added=reserved)
    before, after = base.save(tmp_path / "base", 0), post.save(tmp_path / "post", 1)
    own = new.save(tmp_path / "new", 2)
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    result = store.apply("delta", base=tmp_path / "new", out=tmp_path / "out")
    out = load(tmp_path / "out")
    step = Step(before[EMBED][len(WORDS)], after[EMBED][len(WORDS)])
    want = oracle.applied(own[EMBED][len(WORDS) + 1], [step])
    assert_same_bits({"row": out[EMBED][len(WORDS) + 1]}, {"row": want})
    assert result.vocabulary[0]["renamed"]["tokens"] == [["<reserved 0>", "<|user|>"]]
    vocabulary = ids(tmp_path / "out")
    assert vocabulary["<|user|>"] == len(WORDS) + 1
    assert "<reserved 0>" not in vocabulary


def test_two_deltas_that_both_add_tokens(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    Model(WORDS).save(tmp_path / "base", 0)
    for name in ("a", "b"):
        Model(WORDS, added=[f"<{name}>"]).save(tmp_path / name, 1)
        store.extract(tmp_path / "base", tmp_path / name, name=name)
    Model([*WORDS, "x"]).save(tmp_path / "new", 2)
    with pytest.raises(DeltaConflictError, match="changed in different ways"):
        store.apply(["a", "b"], base=tmp_path / "new", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_deltas_of_which_one_adds_tokens(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    base, wordy = Model(WORDS), Model(WORDS, added=["<a>"])
    new = Model(shuffled([*WORDS, "x"]))
    before, own = base.save(tmp_path / "base", 0), new.save(tmp_path / "new", 2)
    posts = [one.save(tmp_path / f"post{i}", 5 + i) for i, one in enumerate((base, wordy))]
    for i in range(2):
        store.extract(tmp_path / "base", tmp_path / f"post{i}", name=f"delta{i}")
    refs, scales = ["delta0", "delta1"], [0.5, 1.0]
    store.apply(refs, base=tmp_path / "new", out=tmp_path / "out", scale=scales)
    out = load(tmp_path / "out")
    for name in (EMBED, HEAD):
        rows = []
        for i, token in enumerate(new.all):
            steps = []
            if token in WORDS:
                at = WORDS.index(token)
                steps = [
                    Step(before[name][at], post[name][at], scale)
                    for post, scale in zip(posts, scales, strict=True)
                ]
            rows.append(oracle.applied(own[name][i], steps))
        rows.append(posts[1][name][-1])
        assert_same_bits({name: out[name]}, {name: torch.stack(rows)})


# --- what is said of names ------------------------------------------------------------------------


def renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    return {name.replace(old, new, 1): value for name, value in tensors.items()}


def test_map(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    one = Model(WORDS)
    one.save(tmp_path / "base", 0)
    one.save(tmp_path / "post", 1)
    own = one.save(tmp_path / "plain", 2)
    save(
        tmp_path / "new",
        renamed(own, "model.", "language_model.model."),
        config=one.config,
        files=one.tokenizer,
    )
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    with pytest.raises(StructureMismatchError) as caught:
        store.apply("delta", base=tmp_path / "new", out=tmp_path / "out")
    assert "`--map '^model\\.=language_model.model.'`" in caught.value.hint
    with pytest.raises(StructureMismatchError) as caught:
        store.apply("delta", base=tmp_path / "plain", out=tmp_path / "out", rename={"model": "x"})
    assert "leave it out" in caught.value.hint
    result = store.apply(
        "delta",
        base=tmp_path / "new",
        out=tmp_path / "out",
        rename={r"^model\.": "language_model.model."},
    )
    assert result.lineage[0]["verdict"] == "related"
    assert result.lineage[0]["tensors"] == 3
    store.apply("delta", base=tmp_path / "plain", out=tmp_path / "want")
    want = renamed(load(tmp_path / "want"), "model.", "language_model.model.")
    assert_same_bits(load(tmp_path / "out"), want)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("no divider", "no renaming"),
        ("=x", "no renaming"),
        ("(=x", "cannot be used to rename"),
        (r"model=\3", "cannot be used to rename"),
        ("nothing=x", "changes the name of no tensor"),
        (".*=x", "would both be called x"),
    ],
)
def test_a_map_that_makes_no_sense(
    store: deltastore.DeltaStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rule: str,
    message: str,
) -> None:
    for side, seed in (("base", 0), ("post", 1), ("new", 2)):
        Model(WORDS).save(tmp_path / side, seed)
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    arguments = ["--store", str(tmp_path / "store"), "apply", "delta", "--map", rule]
    places = ["--base", str(tmp_path / "new"), "--out", str(tmp_path / "out")]
    assert main([*arguments, *places]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_scale_for(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    one = Model(WORDS)
    before, own = one.save(tmp_path / "base", 0), one.save(tmp_path / "new", 2)
    posts = [one.save(tmp_path / f"post{i}", 5 + i) for i in range(2)]
    for i in range(2):
        store.extract(tmp_path / "base", tmp_path / f"post{i}", name=f"delta{i}")
    store.apply(
        ["delta0", "delta1"],
        base=tmp_path / "new",
        out=tmp_path / "out",
        scale=[1.0, 0.5],
        scale_for={"model.*": 0.25, "model.layers.*.mlp.*": [0.7, -1.0]},
    )
    scales = {HEAD: (1.0, 0.5), EMBED: (0.25, 0.25), NORM: (0.25, 0.25), INNER: (0.7, -1.0)}
    want = {
        name: oracle.applied(
            own[name],
            [Step(before[name], p[name], s) for p, s in zip(posts, scales[name], strict=True)],
        )
        for name in own
    }
    assert_same_bits(load(tmp_path / "out"), want)
    provenance = json.loads((tmp_path / "out" / "deltastore.json").read_text())
    assert provenance["scale_for"] == [
        {"pattern": "model.*", "scales": [0.25]},
        {"pattern": "model.layers.*.mlp.*", "scales": [0.7, -1.0]},
    ]


def test_scale_for_of_the_own_base_restores_nothing(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    one = Model(WORDS)
    before, after = one.save(tmp_path / "base", 0), one.save(tmp_path / "post", 1)
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    result = store.apply(
        "delta", base=tmp_path / "base", out=tmp_path / "out", scale_for={"*norm*": 0.0}
    )
    assert not result.restored
    assert_same_bits(load(tmp_path / "out"), after | {NORM: before[NORM]})


@pytest.mark.parametrize("by_token", [True, False])
def test_a_scale_of_zero_adds_no_tokens(
    store: deltastore.DeltaStore, tmp_path: Path, by_token: bool
) -> None:
    Model(WORDS).save(tmp_path / "base", 0)
    Model(WORDS, added=["<a>"]).save(tmp_path / "post", 1)
    new = Model([*WORDS, "x"] if by_token else WORDS)
    own = new.save(tmp_path / "new", 2)
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    store.apply("delta", base=tmp_path / "new", out=tmp_path / "out", scale=0.0)
    assert_same_bits(load(tmp_path / "out"), own)
    assert ids(tmp_path / "out") == {token: i for i, token in enumerate(new.all)}
    for left_out in ("*embed*", "lm_head*"):
        with pytest.raises(UsageError, match="adds tokens") as caught:
            store.apply(
                "delta", base=tmp_path / "new", out=tmp_path / "half", scale_for={left_out: 0.0}
            )
        assert "--skip-embeddings" in caught.value.hint


@pytest.mark.parametrize(
    ("scale_for", "message"),
    [
        ({"model.layer.*": 1.0}, "matches no tensor"),
        ({"*": [1.0, 2.0]}, "2 scales were given for '\\*' and 1 refs"),
        ({"*": float("nan")}, "finite"),
    ],
)
def test_scale_for_that_makes_no_sense(
    store: deltastore.DeltaStore, tmp_path: Path, scale_for: dict[str, float], message: str
) -> None:
    for side, seed in (("base", 0), ("post", 1)):
        Model(WORDS).save(tmp_path / side, seed)
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    with pytest.raises(UsageError, match=message):
        store.apply("delta", base=tmp_path / "base", out=tmp_path / "out", scale_for=scale_for)
    assert not (tmp_path / "out").exists()


def test_heads_of_another_number_are_refused(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    one = Model(WORDS)
    for side, seed, heads in (("base", 0, 4), ("post", 1, 4), ("new", 2, 8)):
        config = one.config | {"num_attention_heads": heads}
        save(tmp_path / side, one.weights(seed), config=config, files=one.tokenizer)
    store.extract(tmp_path / "base", tmp_path / "post", name="delta")
    with pytest.raises(StructureMismatchError, match=r"num_attention_heads: expected 4.*got 8"):
        store.apply("delta", base=tmp_path / "new", out=tmp_path / "out")


# --- pieces ---------------------------------------------------------------------------------------


@given(
    places=st.lists(st.one_of(st.just(NONE), st.integers(0, 30)), min_size=1, max_size=12),
    width=st.integers(1, 5),
    data=st.data(),
)
def test_runs_say_of_every_element_where_it_comes_from(
    places: list[int], width: int, data: st.DataObject
) -> None:
    total = len(places) * width
    start = data.draw(st.integers(0, total - 1))
    count = data.draw(st.integers(1, total - start))
    got = [-1] * count
    for at, source, length in runs(np.array(places, np.int64), width, start, count):
        assert length > 0
        for i in range(length):
            assert got[at + i] == -1
            got[at + i] = source + i
    for i in range(count):
        row, column = divmod(start + i, width)
        want = -1 if places[row] == NONE else places[row] * width + column
        assert got[i] == want


@settings(max_examples=200)
@given(
    data=st.data(),
    source=st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1),
    new=st.lists(st.sampled_from("abcdefghxyz"), unique=True, min_size=1),
)
def test_every_token_of_post_has_a_row_of_its_own_or_is_lost(
    data: st.DataObject, source: list[str], new: list[str]
) -> None:
    post = [*source, *data.draw(st.lists(st.sampled_from("pqrsx"), unique=True))]
    common = data.draw(st.integers(len(source), len(source) + 3))
    post_rows = max(common, len(post) + data.draw(st.integers(-1, 3)))
    new_rows = len(new) + data.draw(st.integers(0, 3))
    ids_of = [{token: i for i, token in enumerate(tokens)} for tokens in (source, post, new)]
    found = match_tokens(*ids_of, common=common, post_rows=post_rows, new_rows=new_rows)
    targets = [target for _, target in found.pairs]
    assert len(set(targets)) == len(targets)
    placed = {post[number] for number, _ in found.pairs}
    assert placed | set(found.lost) == set(post)
    assert not placed & set(found.lost)
    for number, target in found.pairs:
        if post[number] in ids_of[2]:
            assert target == ids_of[2][post[number]]
        else:
            assert target >= len(new)
    rows = found.rows(new_rows, common, post_rows)
    assert ((rows.delta == NONE) | (rows.values == NONE)).all()
    assert (rows.values[new_rows:] != NONE).all()
    assert rows.count == max([new_rows, *(t + 1 for t in targets)])


@pytest.mark.parametrize(
    ("post", "pairs", "own"),
    [
        (["a", "b", "c"], {("a", "a"), ("b", "b"), ("c", "c")}, 1),
        (["b", "a", "c"], {("c", "c")}, 3),
        (["a", "c"], {("a", "a")}, 3),
        (["a", "x", "c"], {("a", "a"), ("x", "x"), ("c", "c")}, 1),
        (["a", "x", "c", "b"], {("a", "a"), ("c", "c"), ("b", "b")}, 1),
    ],
    ids=["kept", "swapped", "moved up", "renamed to one that is there", "gave its row away"],
)
def test_a_difference_of_two_tokens_is_added_to_none(
    post: list[str], pairs: set[tuple[str, str]], own: int
) -> None:
    """A row's delta is post's token less base's: it is of use only where these are one."""
    source, new = ["a", "b", "c"], ["c", "x", "b", "a"]
    ids_of = [{token: i for i, token in enumerate(tokens)} for tokens in (source, post, new)]
    common = min(len(source), len(post))
    found = match_tokens(*ids_of, common=common, post_rows=len(post), new_rows=4)
    assert {(post[number], new[target]) for number, target in found.pairs} == pairs
    assert found.own == own
    assert not found.lost
    # The output has every one of them all the same.
    assert [found.translate(i) for i in range(len(post))] == [ids_of[2][t] for t in post]
    assert found.matched + found.own == len(new)


def test_a_token_that_post_moved_renames_no_other() -> None:
    """Post gave b the row of a, which it has no more; the new base has a, and no b."""
    source, post, new = {"a": 0, "b": 1, "c": 2}, {"b": 0, "c": 2}, {"a": 0, "c": 1}
    found = match_tokens(source, post, new, common=3, post_rows=3, new_rows=2)
    assert found.pairs == ((2, 1),)
    assert found.renamed == ()
    assert found.lost == ("b",)


def test_a_token_that_post_moved_to_a_padding_row_gets_no_delta() -> None:
    """The row's delta is the token's less that of a row that was no token's."""
    source, post, new = {"a": 0, "b": 1}, {"a": 2, "b": 1}, {"b": 0, "a": 1}
    found = match_tokens(source, post, new, common=4, post_rows=4, new_rows=2)
    assert found.pairs == ((1, 0),)
    assert (found.own, found.translate(2)) == (1, 1)
