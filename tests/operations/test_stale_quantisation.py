"""Plain weights whose config.json still declares how they were trained or shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import deltastore
from deltastore.errors import QuantisedCheckpointError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
STALE: dict[str, dict[str, Any]] = {
    "on top": {"quantization_config": FP8},
    "old name": {"compression_config": {"quant_method": "compressed-tensors"}},
    "no document": {"quantization_config": "int8"},
    "in parts": {"part_config": {"quantization_config": NF4, "hidden_size": 16}},
    "deep": {"a_config": {"b_config": {"list": [{"quantization_config": NF4}]}}},
}


def model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def save(path: Path, *, step: float = 0.0, **fields: Any) -> Path:
    made = model()
    with torch.no_grad():
        for value in made.parameters():
            value.add_(step)
    made.save_pretrained(path)
    config = json.loads((path / "config.json").read_text()) | fields
    (path / "config.json").write_text(json.dumps(config))
    return path


def declares(value: Any) -> bool:
    if isinstance(value, dict):
        named = {"quantization_config", "compression_config"} & value.keys()
        return bool(named) or any(map(declares, value.values()))
    return isinstance(value, list) and any(map(declares, value))


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("sides", ["post", "base post", "new", "base post new", "base"])
@pytest.mark.parametrize("kind", STALE)
def test_the_field_reaches_no_output(tmp_path: Path, kind: str, sides: str, scale: float) -> None:
    """On the delta's own base, which makes the output post, and on another."""
    base, post, new = (
        save(tmp_path / name, step=step, **(STALE[kind] if name in sides.split() else {}))
        for name, step in (("base", 0), ("post", 0.02), ("new", 0.01))
    )
    with deltastore.open(tmp_path / "store") as store:
        ref = store.extract(base, post)
        for label, own in (("base", base), ("new", new)):
            (found,) = store.resolve(own)
            assert found.compatible
            out = tmp_path / f"out-{label}"
            done = store.apply(ref, base=own, out=out, scale=scale)
            assert done.restored is (label == "base" and scale == 1)
            document = json.loads((out / "config.json").read_text())
            assert not declares(document)
            if label in sides.split() and not done.restored:
                notes = {row["name"]: row.get("note", "") for row in done.files}
                assert "is left out: the weights are not quantised" in notes["config.json"]
            loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
            assert loaded.dtype == torch.bfloat16
            want = load_file(out / "model.safetensors")["model.embed_tokens.weight"]
            assert torch.equal(loaded.get_input_embeddings().weight, want)


def test_a_field_that_the_output_does_not_follow_is_said(tmp_path: Path) -> None:
    base, new = save(tmp_path / "base"), save(tmp_path / "new", step=0.01)
    post = save(tmp_path / "post", step=0.02, quantization_config=NF4)
    with deltastore.open(tmp_path / "store") as store:
        done = store.apply(store.extract(base, post), base=new, out=tmp_path / "out")
    assert [row["field"] for row in done.config_left] == ["quantization_config"]


def test_what_is_quantised_online_stays(tmp_path: Path) -> None:
    """BitNet computes with 16-bit weights in few bits: without the field it would not."""
    online = {"quant_method": "bitnet", "quantization_mode": "online"}
    base, post, new = (
        save(tmp_path / name, step=step, quantization_config=online)
        for name, step in (("base", 0), ("post", 0.02), ("new", 0.01))
    )
    with deltastore.open(tmp_path / "store") as store:
        store.apply(store.extract(base, post), base=new, out=tmp_path / "out")
    document = json.loads((tmp_path / "out/config.json").read_text())
    assert document["quantization_config"] == online


def test_a_quantised_post_keeps_it_where_it_is_restored(tmp_path: Path) -> None:
    """Of a plain base, too: the pair is stored for restoration alone."""
    base, post = save(tmp_path / "base"), save(tmp_path / "post", quantization_config=NF4)
    tensors = load_file(post / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = torch.arange(128, dtype=torch.uint8).reshape(128, 1)
    tensors[f"{name}.absmax"] = torch.ones(4)
    tensors[f"{name}.quant_map"] = torch.linspace(-1, 1, 16)
    save_file(tensors, post / "model.safetensors", metadata={"format": "pt"})
    with deltastore.open(tmp_path / "store") as store:
        with pytest.raises(QuantisedCheckpointError, match="'bitsandbytes'") as caught:
            store.extract(base, post)
        assert caught.value.exit_code == 66
        ref = store.extract(base, post, restore_only=True)
        assert store.apply(ref, base=base, out=tmp_path / "out").restored
    document = json.loads((tmp_path / "out/config.json").read_text())
    assert document["quantization_config"] == NF4
