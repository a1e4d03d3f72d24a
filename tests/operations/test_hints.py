"""What a refused application advises is done, literally, and works."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import Tensors, load, model, save, trained

from deltastore.cli.main import main

BASE = model("base")


def prefixed(tensors: Tensors) -> Tensors:
    return {f"language_model.{name}": tensor for name, tensor in tensors.items()}


def one_renamed(tensors: Tensors) -> Tensors:
    return {
        name.replace("layers.1.mlp.up_proj", "layers.1.mlp.wide"): t for name, t in tensors.items()
    }


def one_without_a_layer(tensors: Tensors) -> Tensors:
    """Its counterpart would be another layer's."""
    return {n.replace("layers.1.input_layernorm", "input_norm"): t for n, t in tensors.items()}


def swapped(tensors: Tensors) -> Tensors:
    """Two names that one beginning for another would make one."""
    a, b = (f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2))
    tensors["model.layers.1.self_attn.query.weight"] = tensors.pop(b)
    tensors["model.self_attn.query.weight"] = tensors.pop(a)
    return tensors


def two_beginnings(tensors: Tensors) -> Tensors:
    renamed = {name.replace("model.", "model.text.", 1): t for name, t in tensors.items()}
    return {name.replace("lm_head", "heads.lm_head"): t for name, t in renamed.items()}


def fewer_rows(tensors: Tensors) -> Tensors:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:-8]
    return tensors


def narrower(tensors: Tensors) -> Tensors:
    name = "model.layers.0.mlp.up_proj.weight"
    return tensors | {name: tensors[name][:-8].contiguous()}


def a_layer_less(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if ".1." not in name}


def renamed_and_narrower(tensors: Tensors) -> Tensors:
    """A renaming alone does not help."""
    return prefixed(narrower(tensors))


@pytest.mark.parametrize(
    ("change", "option"),
    [
        (prefixed, "--map"),
        (one_renamed, "--partial"),
        (two_beginnings, "--map"),
        (one_without_a_layer, None),
        (swapped, None),
        (fewer_rows, "--skip-embeddings"),
        (narrower, "--partial"),
        (a_layer_less, "--partial"),
        (renamed_and_narrower, None),
    ],
)
def test_what_is_advised_works(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Tensors], Tensors],
    option: str | None,
) -> None:
    save(tmp_path / "base", BASE)
    save(tmp_path / "post", trained(BASE, "post"))
    new = change({name: tensor.clone() for name, tensor in BASE.items()})
    save(tmp_path / "new", new)
    store = ["--store", str(tmp_path / "store")]
    pair = ["--base", str(tmp_path / "base"), "--post", str(tmp_path / "post"), "--name", "x"]
    assert main([*store, "extract", *pair]) == 0
    apply = [*store, "apply", "x", "--base", str(tmp_path / "new"), "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert main(apply) == 31
    _, *listed, hint = capsys.readouterr().err.splitlines()
    assert len(listed) <= 3 * 11
    assert not (tmp_path / "out").exists()
    advised = [shlex.split(text) for text in re.findall(r"`(--[^`]*)`", hint)]
    advised = [words for words in advised if words != ["--json"]]  # which shows more, no way on
    if option is not None:
        assert [words[0] for words in advised] == [option]
    for words in advised:
        assert main([*apply, *words]) == 0, words
        assert load(tmp_path / "out").keys() == new.keys()
        assert any(not torch.equal(load(tmp_path / "out")[n], new[n]) for n in new)
