"""What is told those who apply a delta to what it does not fit, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Tensors, load
from checkpoints import save as save_tensors
from families import FAMILIES, make_tokenizer, move, save

from deltastore.cli.main import main

pytestmark = pytest.mark.usefixtures("quiet")

LLAMA, GPT2 = FAMILIES["untied llama"], FAMILIES["untied gpt2"]


@dataclass(frozen=True)
class Place:
    """A store with ``chat`` of a llama, ``tale`` of a GPT-2, and two that have more tokens.

    ``grown`` adds them, ``large`` was extracted from a base that had them. Only to be read.
    """

    root: Path

    def base(self, name: str) -> Path:
        """The base that a delta was extracted from."""
        return self.root / f"{name}-base"

    @property
    def store(self) -> str:
        return str(self.root / "store")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("place"))
    tokenizer = make_tokenizer()
    for name, family, before, after in (
        ("chat", LLAMA, 64, 64),
        ("tale", GPT2, 64, 64),
        ("grown", LLAMA, 64, 66),
    ):
        post = family.build(1, after)
        move(post, 2, 0.02)
        save(family.build(1, before), tokenizer, place.base(name))
        save(post, tokenizer, place.root / name)
        pair = ["--base", str(place.base(name)), "--post", str(place.root / name)]
        assert main(["-q", "--store", place.store, "extract", *pair, "--name", name]) == 0
    return place


@dataclass(frozen=True)
class Refusal:
    """What a command that must fail says: the lines, and the same as JSON."""

    error: str
    listed: list[str]
    hint: str
    facts: dict[str, Any]


Refused = Callable[..., Refusal]


@pytest.fixture
def refused(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs ``apply`` twice, for people and for programs; it must leave nothing."""

    def run(code: int, *argv: str, base: Path | None = None) -> Refusal:
        out = tmp_path / "out"
        base = base or place.base("chat")
        line = ["--store", place.store, "apply", *argv, "--base", str(base), "--out", str(out)]
        capsys.readouterr()
        assert main(line) == code
        printed = capsys.readouterr()
        error, *listed, hint = printed.err.splitlines()
        assert main([*line, "--json"]) == code
        told = json.loads(capsys.readouterr().err)["error"]
        assert told["exit_code"] == code
        assert (error, hint) == (f"error: {told['message']}", f"hint: {told['hint']}")
        assert printed.out == ""
        assert not [path for path in tmp_path.iterdir() if "out" in path.name]
        return Refusal(error, listed, hint, told["facts"])

    return run


def test_a_base_of_another_architecture(
    place: Place, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    base = place.base("tale")
    ours, theirs = load(base).keys(), load(place.base("chat")).keys()
    told = refused(31, "chat", base=base)
    assert told.error == (
        f"error: {base} is another model than the one chat:v1 was extracted from: it has 1 of "
        "the 21 tensors of chat:v1, and 28 of its own, such as transformer.h.0.attn.c_attn.bias "
        "and not model.embed_tokens.weight; model_type 'gpt2' instead of 'llama'; architectures "
        "['GPT2LMHeadModel'] instead of ['LlamaForCausalLM']."
    )
    assert told.listed == []
    assert {name for name, _ in told.facts["missing"]} == theirs - ours
    assert {name for name, _ in told.facts["extra"]} == ours - theirs
    assert f"deltastore resolve --base {base}" in told.hint
    assert "--partial" not in told.hint
    assert main(["--store", place.store, "resolve", "--base", str(base), "-q"]) == 0
    assert capsys.readouterr().out == "tale:v1\n"


def test_a_base_of_another_architecture_is_no_partial_match(
    place: Place, refused: Refused, tmp_path: Path
) -> None:
    family = replace(GPT2, fields={**GPT2.fields, "n_embd": 16})
    base = save(family.build(1), make_tokenizer(), tmp_path / "other")
    told = refused(31, "chat", "--partial", base=base)
    assert told.error == (
        f"error: Not one of the 21 tensors of chat:v1 fits {base}; the output would be a copy of "
        "it."
    )


def test_a_base_of_another_size(refused: Refused, tmp_path: Path) -> None:
    fields = {**LLAMA.fields, "hidden_size": 48, "num_hidden_layers": 1}
    small = save(replace(LLAMA, fields=fields).build(1), make_tokenizer(), tmp_path / "small")
    told = refused(31, "chat", base=small)
    assert "9 missing in the new base, 12 of another shape or dtype" in told.error
    assert "; hidden_size 48 instead of 32 (chat:v1)" in told.error
    assert "; num_hidden_layers 1 instead of 2 (chat:v1)" in told.error
    assert "model_type" not in told.error
    assert len(told.listed) == 9 + 10 + 1
    assert told.listed[-1] == "  mismatched: and 2 more tensors; `--json` lists all"


def test_a_model_without_a_configuration(refused: Refused, tmp_path: Path) -> None:
    told = refused(31, "chat", base=save_tensors(tmp_path / "bare", {"weight": torch.ones(3)}))
    assert told.error.endswith(
        "it has 0 of the 21 tensors of chat:v1, and 1 of its own, such as weight and not "
        "lm_head.weight."
    )


def gptq(weights: Tensors) -> Tensors:
    """The projections packed as GPTQ packs them."""
    packed = {}
    for name, tensor in weights.items():
        if "proj" in name:
            prefix, (out, inner) = name.removesuffix(".weight"), tensor.shape
            packed[f"{prefix}.qweight"] = torch.zeros(inner // 8, out, dtype=torch.int32)
            packed[f"{prefix}.qzeros"] = torch.zeros(1, out // 8, dtype=torch.int32)
            packed[f"{prefix}.scales"] = torch.ones(1, out).half()
            packed[f"{prefix}.g_idx"] = torch.zeros(inner, dtype=torch.int32)
        else:
            packed[name] = tensor
    return packed


def bitsandbytes(weights: Tensors) -> Tensors:
    """The projections in four bits, as bitsandbytes saves them."""
    packed = {}
    for name, tensor in weights.items():
        packed[name] = tensor
        if "proj" in name:
            packed[name] = torch.zeros(tensor.numel() // 2, 1, dtype=torch.uint8)
            packed[f"{name}.absmax"] = torch.ones(tensor.numel() // 64)
            packed[f"{name}.quant_map"] = torch.ones(16)
            state = torch.zeros(80, dtype=torch.uint8)
            packed[f"{name}.quant_state.bitsandbytes__nf4"] = state
    return packed


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.mark.parametrize(
    ("pack", "declared", "reason"),
    [
        (gptq, GPTQ, "its config.json has a quantization_config (quant_method 'gptq')"),
        (gptq, None, "is one of GPTQ or AWQ"),
        (
            bitsandbytes,
            BITSANDBYTES,
            "its config.json has a quantization_config (quant_method 'bitsandbytes')",
        ),
        (bitsandbytes, None, "is one of bitsandbytes"),
    ],
)
def test_a_quantised_base(
    place: Place,
    refused: Refused,
    tmp_path: Path,
    pack: Callable[[Tensors], Tensors],
    declared: dict[str, Any] | None,
    reason: str,
) -> None:
    config = json.loads((place.base("chat") / "config.json").read_text())
    if declared is not None:
        config["quantization_config"] = declared
    base = save_tensors(tmp_path / "small", pack(load(place.base("chat"))), config=config)
    for options in ([], ["--partial"], ["--force"], ["--dry-run"]):
        told = refused(66, "chat", *options, base=base)
        assert told.error.startswith(f"error: {base} is quantised (")
        assert reason in told.error
        assert "quantised from" in told.hint
        assert told.listed == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chat", "--scale", "1", "--scale", "2"], "1 REF and 2 --scale"),
        (["chat", "grown", *["--scale", "1"] * 3], "2 REFs and 3 --scale"),
        (["chat", "grown", "chat", *["--scale", "1"] * 2], "3 REFs and 2 --scale"),
        (
            ["--from-base", "chat-base", "--from-post", "chat", *["--scale", "1"] * 2],
            "1 REF and 2 --scale",
        ),
        (["chat", "--scale", "nan"], "nan"),
        (["chat", "--scale", "inf"], "inf"),
        (["chat", "grown", "--scale", "1", "--scale", "1e39"], "The scale of grown is 1e+39"),
        (["chat", "--scale", "1,0"], "1,0"),
        (["chat", "--scale", ""], "--scale"),
    ],
)
def test_scales_that_do_not_match(refused: Refused, arguments: list[str], said: str) -> None:
    told = refused(2, *arguments)
    assert said in told.error
    assert told.hint


@pytest.mark.parametrize("refs", [["chat", "tale"], ["tale", "chat"]])
def test_two_deltas_of_which_one_is_of_another_architecture(
    place: Place, refused: Refused, refs: list[str]
) -> None:
    told = refused(31, *refs)
    base = place.base("chat")
    assert told.error.startswith(f"error: {base} is another model than the one tale:v1 was")
    assert "; model_type 'llama' instead of 'gpt2'" in told.error
    assert "chat:v1" not in told.error
    assert told.listed == []


@pytest.mark.parametrize("refs", [["chat", "grown"], ["grown", "chat"]])
def test_two_deltas_of_which_one_adds_tokens(refused: Refused, refs: list[str]) -> None:
    told = refused(34, *refs)
    kinds = {"chat": "chat:v1 (delta)", "grown": "grown:v1 (resized)"}
    assert told.error == (
        "error: Tensor lm_head.weight is changed in different ways by "
        f"{' and '.join(kinds[ref] for ref in refs)}."
    )
    assert "one after the other" in told.hint
    assert told.facts["refs"] == [f"{ref}:v1" for ref in refs]
