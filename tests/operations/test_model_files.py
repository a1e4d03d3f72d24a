"""Documents that travel without a rule of their own: what they may not say, and whose they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import model, save, trained
from safetensors.torch import save_file
from small_files_world import composed, read

import deltastore
from deltastore.artifact import small_files
from deltastore.artifact.model_files import fitting, names_code, unfit
from deltastore.cli.main import cli
from deltastore.errors import TokenizerError
from deltastore.manifest.format import MAX_SMALL_FILES_BYTES

POOLING = "sentence_transformers.models.Pooling"
NEW_POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
CONFIG = {"model_type": "llama", "vocab_size": 96}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[deltastore.DeltaStore]:
    with deltastore.open(tmp_path / "store") as opened:
        yield opened


def modules(*rows: Mapping[str, Any]) -> bytes:
    return json.dumps([{"idx": 0, "name": "0", "path": ""} | dict(row) for row in rows]).encode()


# --- what they may not say ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        {"auto_map": {"AutoModel": "modeling_x.X"}},
        {"a": [{"b": {"auto_map": None}}]},
        {"model_args": {"trust_remote_code": True}},
        {"custom_pipelines": {}},
        {"code_revision": "main"},
        {"activation_function": "os.system"},
        {"activation_fn": "torch.hub.load"},
        {"activation_fn": "torch.nn.modules.activation"},
        {"activation_function": "torch.utils.collect_env.main"},
        {"types": {"query_0": "modeling_x.Custom"}},
        {"types": {"query_0": "sentence_transformers.util.misc.import_from_string"}},
        {"tokenizer_class": "evil.tokenizers.Tokenizer"},
        ["subprocess.Popen"],
    ],
    ids=json.dumps,
)
def test_nothing_that_is_imported_or_run(document: Any) -> None:
    # The key may be spelled as the parser alone sees it.
    for text in (json.dumps(document), json.dumps(document).replace("a", "\\u0061")):
        reason = unfit("x.json", text.encode(), storing=False)
        assert reason is not None
        assert reason.startswith("names code")


@pytest.mark.parametrize(
    "row",
    [
        {"type": "modeling_x.Custom"},
        {"type": "sentence_transformers_evil.models.Pooling"},
        {"type": "sentence_transformers.models.os"},
        {"type": "sentence_transformers.base.model.torch"},
        {"type": None},
        {"type": POOLING, "path": ".."},
        {"type": POOLING, "path": "/etc"},
        {"type": POOLING, "path": "1_Pooling/.."},
        {"type": POOLING, "path": "model.safetensors"},
        {"type": POOLING, "path": None},
        {"type": POOLING, "kwargs": {"trust_remote_code": True}},
    ],
    ids=json.dumps,
)
def test_modules_are_those_of_sentence_transformers(row: dict[str, Any]) -> None:
    for kind in (POOLING, NEW_POOLING):
        good = {"type": kind, "path": "1_Pooling"}
        assert unfit("modules.json", modules(good), storing=True) is None
        assert unfit("modules.json", modules(good, row), storing=True) is not None
    # Their folders go with them.
    files = {"modules.json": modules(row), "1_Pooling/config.json": b"{}"}
    kept, left = fitting(files, storing=False)
    assert (kept, left.keys()) == ({}, files.keys())


@pytest.mark.parametrize(
    "data",
    [b"", b"import os", b"\x80\x04\x95", b"[" * 1000 + b"]" * 1000, b"[" * 10**6, b"\xff{}"],
    ids=["empty", "code", "pickle", "deep", "deeper", "no text"],
)
def test_what_is_no_document_does_not_travel(data: bytes) -> None:
    for name in ("x.json", "modules.json"):
        assert unfit(name, data, storing=False) is not None


@pytest.mark.parametrize(
    "document",
    [
        {"pooling_mode": "cls", "embedding_dimension": 384},
        {"activation_function": "torch.nn.modules.activation.Tanh"},
        {"activation_function": "torch.nn.modules.linear.Identity"},
        {"types": {"query_0_Transformer": NEW_POOLING}},
        {"prompts": {"query": "task: search result | query: "}, "__version__": {"torch": "2.6.0"}},
        {"accessorise": "accessorize", "</s>": "/", "//": "/a"},
        {"model_file_name": "model.safetensors", "hidden_act": "gelu_new"},
        {"dim": 4096, "rope_theta": 1e6, "_sliding_window": None},
    ],
    ids=json.dumps,
)
def test_what_says_something_of_the_model_travels(document: Any) -> None:
    assert unfit("x.json", json.dumps(document).encode(), storing=True) is None


@pytest.mark.parametrize("place", ["/home/me/run", "~/models/x", "C:\\Users\\me", "file:///x/y"])
def test_places_on_this_machine_stay_here(place: str) -> None:
    data = json.dumps({"a": [{"output_dir": place}]}).encode()
    assert unfit("x.json", data, storing=True) == "names a place on this machine"
    assert unfit("x.json", data, storing=False) is None


def test_no_two_names_of_one_file() -> None:
    rows = modules({"path": "1_Pooling", "type": POOLING}, {"path": "1_pooling", "type": POOLING})
    files = dict.fromkeys(("1_Pooling/config.json", "1_pooling/config.json"), b"{}")
    kept, left = fitting(
        files | {"modules.json": rows, "A.json": b"1", "a.json": b"2"}, storing=False
    )
    assert kept.keys() == {"modules.json", "1_Pooling/config.json", "A.json"}
    assert set(left.values()) == {"called like another file but for case"}


def test_no_more_templates_than_a_checkpoint_has() -> None:
    files = {f"additional_chat_templates/t{i:03}.jinja": b"" for i in range(500)}
    kept, left = fitting(files, storing=False)
    assert (len(kept), len(left)) == (64, 436)


def test_nothing_of_post_has_code_loaded(tmp_path: Path) -> None:
    code = {"auto_map": {"AutoModel": "evil.Evil"}}
    deep = json.dumps(code)[:-1] + ', "x": ' + "[" * 70 + "]" * 70 + "}"
    names = {
        "config.json": {"model_type": "x", "parts": [code]},
        "tokenizer_config.json": {"x": [code], "pad_token": "a"},
        "special_tokens_map.json": {"pad_token": "a", "attn_implementation": "evil/kernel"},
        "processor_config.json": {"x": {"trust_remote_code": True}},
        "generation_config.json": {"a": [{"b": code}]},
        "chat_template.json": {"chat_template": "x", "y": code},
        "tokenizer.json": {"model": {"vocab": {"auto_map": 0}}, "z": [code]},
    }
    post = {name: json.dumps(document) for name, document in names.items()}
    own = {"config.json": '{"model_type": "x"}'}
    for restoring in (False, True):
        out, made = composed(tmp_path / str(restoring), own, post, own, restoring=restoring)
        for path in out.iterdir():
            assert "evil" not in path.read_text()
            assert "trust_remote_code" not in path.read_text()
        # A token may be called so.
        assert read(out / "tokenizer.json")["model"]["vocab"] == {"auto_map": 0}
        assert any("no code goes into" in warning for warning in made.ledger.warnings)
    # What is not understood here may be understood elsewhere.
    out, made = composed(tmp_path / "deep", {}, {"tokenizer_config.json": deep}, {})
    assert not out.exists() or not list(out.iterdir())
    # What the new base says is its own.
    own = {"config.json": json.dumps({"auto_map": {"AutoModel": "mine.Mine"}})}
    out, _ = composed(tmp_path / "own", {}, post, own)
    assert read(out / "config.json")["auto_map"] == {"AutoModel": "mine.Mine"}


def test_words_for_kernels_are_no_code(tmp_path: Path) -> None:
    for value, kept in (("sdpa", True), ("flash_attention_2", True), ("evil/kernel:x", False)):
        assert names_code("attn_implementation", value) is not kept
    assert names_code("activation_fn", "os.system")
    assert not names_code("activation_fn", "torch.nn.modules.activation.Sigmoid")
    assert not names_code("modules_to_save", "model.visual")


def test_a_stranger_gets_no_more_in_than_a_checkpoint_has() -> None:
    files = {f"a{i:03}.json": b"{}" for i in range(500)}
    files |= {"x.py": b"", ".git/hooks/processor_config.json": b"{}", "LICENSE.py": b""}
    kept, left = fitting(files, storing=False)
    assert len(kept) == 64
    assert len(left) == len(files) - 64
    big = {f"a{i}.json": b'"' + bytes([97]) * (4 << 20) + b'"' for i in range(2)}
    assert fitting(big, storing=False)[0] == {}


# --- whose they are -------------------------------------------------------------------------------

A, B, C = '{"of": 1}', '{"of": 2}', '{"of": 3}'


@pytest.mark.parametrize(
    ("source", "post", "own", "found", "origin"),
    [
        (A, A, A, A, "new base"),
        (A, A, C, C, "new base"),
        (A, A, None, A, "post"),
        (A, B, A, B, "post"),
        (A, B, C, B, "post"),
        (A, B, None, B, "post"),
        (None, B, None, B, "post"),
        (None, B, C, B, "post"),
        (A, None, A, A, "new base"),
        (A, None, C, C, "new base"),
        (None, None, C, C, "new base"),
        (A, None, None, None, None),
    ],
)
@pytest.mark.parametrize("name", ["normalizer.json", "other.json", "1_Pooling/config.json"])
def test_a_file_follows_post_where_post_changed_it(
    tmp_path: Path,
    name: str,
    source: str | None,
    post: str | None,
    own: str | None,
    found: str | None,
    origin: str | None,
) -> None:
    rows = modules({"type": POOLING, "path": "1_Pooling"})
    sides = [
        {name: text, "modules.json": rows} if text is not None else {"modules.json": rows}
        for text in (source, post, own)
    ]
    out, made = composed(tmp_path, *sides)
    assert ((out / name).read_text() if (out / name).exists() else None) == found
    assert made.ledger.origins.get(name) == origin


def test_on_its_own_base_a_file_is_posts(tmp_path: Path) -> None:
    base = {"a.json": A, "b.json": A, "c.json": A, "preprocessor_config.json": A}
    post = {"a.json": B, "c.json": A, "d.json": B, "preprocessor_config.json": B}
    out, made = composed(tmp_path, base, post, base, restoring=True)
    found = {path.name: path.read_text() for path in out.iterdir()}
    assert found == post
    assert not made.ledger.warnings
    # What was written into it since is not taken away.
    own = base | {"b.json": C, "c.json": C}
    out, _ = composed(tmp_path / "edited", base, post, own, restoring=True)
    assert {path.name: path.read_text() for path in out.iterdir()} == post | {
        "b.json": C,
        "c.json": C,
    }


def native(path: Path, rows: int, seed: int, **more: Any) -> Path:
    """A model as Mistral's own code has it, of which params.json alone says the sizes."""
    matrices = {"tok_embeddings": rows, "output": rows, "layers.0.feed_forward.w1": 40}
    tensors = {}
    for number, (name, size) in enumerate(matrices.items()):
        common = torch.randn(60, 24, generator=torch.Generator().manual_seed(number))[:size]
        step = torch.randn(size, 24, generator=torch.Generator().manual_seed(seed))
        tensors[f"{name}.weight"] = common + 0.01 * step
    path.mkdir()
    save_file(tensors, path / "consolidated.safetensors")
    params = {"dim": 24, "hidden_dim": 40, "vocab_size": rows, "norm_eps": 1e-5} | more
    (path / "params.json").write_text(json.dumps(params))
    return path


def test_params_say_the_sizes_and_are_otherwise_the_new_bases(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    base = native(tmp_path / "base", 48, 2)
    post = native(tmp_path / "post", 52, 3, norm_eps=1e-6)
    new = native(tmp_path / "new", 48, 4, rope_theta=1e6)
    store.extract(base, post, name="delta")
    result = store.apply("delta", base=new, out=tmp_path / "out")
    want = read(new / "params.json") | {"vocab_size": 52}
    assert read(tmp_path / "out" / "params.json") == want
    rows = {row["name"]: row for row in result.files}
    assert rows["params.json"]["from"] == "both"
    assert "post changed norm_eps" in rows["params.json"]["note"]
    for number, how in enumerate(({"skip_embeddings": True}, {"scale": 0.0})):
        store.apply("delta", base=new, out=tmp_path / str(number), **how)
        assert read(tmp_path / str(number) / "params.json") == read(new / "params.json")
    assert store.apply("delta", base=base, out=tmp_path / "own").restored
    assert read(tmp_path / "own" / "params.json") == read(post / "params.json")
    (new / "params.json").unlink()
    store.apply("delta", base=new, out=tmp_path / "without")
    assert read(tmp_path / "without" / "params.json") == read(post / "params.json")


def test_another_processor_of_post_is_said(tmp_path: Path) -> None:
    name = "preprocessor_config.json"
    sides = [{name: json.dumps({"size": size, "x": None})} for size in (1, 2, 1)]
    out, made = composed(tmp_path, *sides)
    assert (out / name).read_text() == sides[2][name]
    assert made.ledger.warnings == [
        f"{name}: post has other values of size; the output has the new base's."
    ]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "processor_config.json"])
def test_code_that_post_names_is_left_out(tmp_path: Path, name: str) -> None:
    """A reference to code in a repository is as good as the code."""
    theirs = {"auto_map": {"AutoTokenizer": "evil/repo--x.X"}, "a": {"trust_remote_code": True}}
    post = {name: json.dumps(theirs | {"size": 1}), "tokenizer.json": "{}"}
    out, made = composed(tmp_path, {}, post, {})
    assert json.loads((out / name).read_text()) == {"a": {}, "size": 1}
    assert any(text.startswith(f"{name}: ") for text in made.ledger.warnings)


# --- a checkpoint and what lies beside it ---------------------------------------------------------


def pair(tmp_path: Path, files: Mapping[str, str] | None = None) -> tuple[Path, Path]:
    base = model("base", layers=1)
    return (
        save(tmp_path / "base", base, config=CONFIG, files=files),
        save(tmp_path / "post", trained(base, "post"), config=CONFIG, files=files),
    )


def beside(place: Path) -> None:
    """What trl and LLaVA's trainers save with a model, and code."""
    save_file({"v_head.summary.weight": torch.ones(1, 32)}, place / "value_head.safetensors")
    torch.save({"model.mm_projector.0.weight": torch.ones(4, 4)}, place / "mm_projector.bin")
    (place / "modeling_x.py").write_text("import os")


NAMES = ["mm_projector.bin", "modeling_x.py", "value_head.safetensors"]


def test_what_lies_beside_is_named_by_both_commands(tmp_path: Path) -> None:
    from click.testing import CliRunner

    base, post = pair(tmp_path)
    beside(post)
    new = save(tmp_path / "new", trained(model("base", layers=1), "new"), config=CONFIG)
    (new / "mtp.safetensors").write_bytes((post / "value_head.safetensors").read_bytes())
    common = ["--json", "--store", str(tmp_path / "store")]

    def run(*arguments: str | Path) -> tuple[Any, str]:
        done = CliRunner().invoke(cli, [*common, *map(str, arguments)])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout), done.stderr

    result, said = run("extract", "--base", base, "--post", post, "--name", "x")
    whys = ["weights", "code", "weights"]
    assert result["not_stored"] == [
        {"side": "post", "name": name, "why": why} for name, why in zip(NAMES, whys, strict=True)
    ]
    assert all(name in said for name in NAMES)
    out = tmp_path / "out"
    for extra in (["--dry-run"], []):
        result, said = run("apply", "x", "--base", new, "--out", out, *extra)
        assert result["not_copied"] == [
            {"of": "new base", "name": "mtp.safetensors", "why": "weights"},
            *({"of": "post of x:v1", "name": n, "why": "not in the artifact"} for n in NAMES),
        ]
        assert all(name in said for name in ["mtp.safetensors", *NAMES])
    assert json.loads((out / "deltastore.json").read_text())["not_copied"] == result["not_copied"]
    assert not {path.name for path in out.iterdir()} & {*NAMES, "mtp.safetensors"}
    done = CliRunner().invoke(
        cli,
        [*common[1:], "apply", "x", "--base", str(base), "--out", str(tmp_path / "own")],
    )
    assert "digest verified, without 3 files beside its weights" in done.stdout


def test_an_artifact_with_nothing_beside_it_does_not_speak_of_it(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    base, post = pair(tmp_path)
    first = store.extract(base, post, name="x")
    assert first.not_stored == []
    assert store._store.load(first.digest)[1].not_stored == ()
    # The same pair with something beside it is another artifact, and found again.
    beside(post)
    second = store.extract(base, post, name="x")
    assert (second.reused, second.version) == (False, 2)
    assert store._store.load(second.digest)[1].not_stored == tuple(NAMES)
    assert store.extract(base, post, name="x").reused
    # What lies beside base changes nothing.
    beside(base)
    third = store.extract(base, post, name="x")
    assert (third.reused, third.digest) == (True, second.digest)
    assert [row["side"] for row in third.not_stored] == ["base"] * 3 + ["post"] * 3


def test_a_composition_is_the_artifact_of_the_whole_pair(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    weights = model("base", layers=1)
    steps = {"a": weights, "b": trained(weights, "b")}
    steps["c"] = trained(steps["b"], "c")
    places = [
        save(tmp_path / name, tensors, config=CONFIG, files={"params.json": f'{{"n": "{name}"}}'})
        for name, tensors in steps.items()
    ]
    (places[0] / "only.json").write_text("{}")
    for place in places[1:]:
        beside(place)
    (places[2] / "value_head.safetensors").unlink()
    chain = [store.extract(*pair, name=f"s{i}").ref for i, pair in enumerate(pairwise(places))]
    result = store.compose(chain, base=places[0], name="whole")
    assert [row["name"] for row in result.not_stored] == NAMES[:2]
    with deltastore.open(tmp_path / "other") as other:
        assert other.extract(places[0], places[2]).digest == result.digest
    assert store.compose(chain, name="whole").reused


def test_hundreds_of_documents_are_no_reason_to_fail(
    store: deltastore.DeltaStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"a{i:03}.json": json.dumps({"n": i}) for i in range(300)}
    base, post = pair(tmp_path, files)
    result = store.extract(base, post, name="x")
    named = {row["name"] for row in result.not_stored if row["side"] == "post"}
    stored = {file.path for file in store.show("x").files if file.side == "post"} - {"config.json"}
    assert len(stored) == 64
    assert len(named) == 200
    assert not stored & named
    # Where the others leave no room, none of them travels.
    with monkeypatch.context() as patch:
        patch.setattr(small_files, "MAX_SMALL_FILES_BYTES", 300)
        crowded = store.extract(base, post, name="y")
    assert [file.path for file in store.show("y").files] == ["config.json", "config.json"]
    assert len(crowded.not_stored) == 400
    assert small_files.MAX_SMALL_FILES_BYTES == MAX_SMALL_FILES_BYTES


# --- tokenizers of fewer families -----------------------------------------------------------------


def with_tokenizers(tmp_path: Path, *texts: str | None) -> list[Path]:
    """Base, post and new base, each with an spm.model or none."""
    weights = model("base", layers=1)
    return [
        save(
            tmp_path / side,
            tensors,
            config=CONFIG,
            files={"tokenizer_config.json": "{}"} | ({"spm.model": text} if text else {}),
        )
        for side, tensors, text in zip(
            ("base", "post", "new"),
            (weights, trained(weights, "post"), trained(weights, "new")),
            texts,
            strict=True,
        )
    ]


def test_a_tokenizer_whose_ids_are_not_known(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    base, post, new = with_tokenizers(tmp_path, "a", "a", "b")
    store.extract(base, post, name="x")
    # Where the files are the same nothing of them needs to be known.
    result = store.apply("x", base=base, out=tmp_path / "own")
    assert (result.restored, result.vocabulary[0]["verdict"]) == (True, "same")
    assert (tmp_path / "own" / "spm.model").read_text() == "a"
    with pytest.raises(TokenizerError, match=r"kept in spm\.model alone") as caught:
        store.apply("x", base=new, out=tmp_path / "out")
    assert caught.value.exit_code == 68
    assert not store.resolve(new)[0].compatible
    store.apply("x", base=new, out=tmp_path / "out", skip_embeddings=True)
    assert (tmp_path / "out" / "spm.model").read_text() == "b"


def test_an_artifact_that_lacks_the_tokenizers_file(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    """As those of older versions do: nothing is known, and nothing is made of it."""
    base, post, new = with_tokenizers(tmp_path, None, None, "b")
    store.extract(base, post, name="x")
    result = store.apply("x", base=new, out=tmp_path / "out")
    assert result.vocabulary[0]["verdict"] == "not compared"
    assert (tmp_path / "out" / "spm.model").read_text() == "b"
    assert store.resolve(new)[0].compatible


def test_post_with_another_tokenizer_has_it_on_its_own_base(
    store: deltastore.DeltaStore, tmp_path: Path
) -> None:
    base, post, _ = with_tokenizers(tmp_path, "a", "b", None)
    store.extract(base, post, name="x")
    result = store.apply("x", base=base, out=tmp_path / "out")
    assert result.restored
    assert (tmp_path / "out" / "spm.model").read_text() == "b"
