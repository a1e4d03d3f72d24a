"""A new base with a longer context, an old post's way to chat: the output has both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import load, save
from click.testing import CliRunner

import deltastore
from deltastore.cli.main import cli

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": False,
    "bos_token_id": 35,
}
OLD = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
NEW = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
}
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}<eot>{% endfor %}"
WORDS = [*(f"w{i}" for i in range(34)), "<unk>", "<s>", "<eos>", "<eot>", "<eom>", "<pad>"]


def tokenizer(eos: str, template: str | None) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["<s>", "<eos>", "<eot>", "<eom>", "<pad>"])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token=eos
    )
    made.chat_template = template
    return made


def saved(
    place: Path, seed: int, card: str, *, eos: Any, template: str | None, **fields: Any
) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(**SIZES, **fields, eos_token_id=eos)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).bfloat16() * 1e-3)
    model.generation_config.eos_token_id = eos
    model.save_pretrained(place)
    tokenizer("<eos>" if template is None else "<eot>", template).save_pretrained(place)
    (place / "README.md").write_text(card)
    return place, dict(model.state_dict())


def card(licence: str, language: str) -> str:
    return f"---\nlicense: {licence}\nlanguage: {language}\n---\n# Card\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Through the command line: extract, a dry run, apply."""
    place = tmp_path_factory.mktemp("loads")
    short, long = {"max_position_embeddings": 64} | OLD, {"max_position_embeddings": 512} | NEW
    sides = {
        "base": saved(place / "base", 1, card("llama3", "en"), eos=36, template=None, **short),
        "post": saved(
            place / "post",
            2,
            card("llama3", "[en, de]"),
            eos=[37, 38],
            template=TEMPLATE,
            use_cache=False,
            **short,
        ),
        "new": saved(place / "new", 3, card("llama3.1", "fr"), eos=36, template=None, **long),
    }
    store = ["--store", str(place / "store"), "--json"]
    pair = ["--base", str(place / "base"), "--post", str(place / "post"), "--name", "chat"]
    run(store, "extract", *pair)
    target = ["--base", str(place / "new"), "--out", str(place / "out")]
    planned = run(store, "apply", "chat", *target, "--dry-run")
    assert not (place / "out").exists()
    done = run(store, "apply", "chat", *target)
    return {"place": place, "out": place / "out", "sides": sides, "planned": planned, "done": done}


def run(store: list[str], command: str, *arguments: str) -> Any:
    result = CliRunner().invoke(cli, [*store, command, *arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_rope_and_context_are_the_new_bases(made: dict[str, Any]) -> None:
    config = transformers.AutoConfig.from_pretrained(made["out"])
    assert config.max_position_embeddings == 512
    assert config.rope_parameters == NEW["rope_parameters"]
    assert config.eos_token_id == [37, 38]
    assert config.use_cache is True
    assert config.dtype == torch.bfloat16


def test_chat_and_its_end_are_posts(made: dict[str, Any]) -> None:
    tokens = transformers.AutoTokenizer.from_pretrained(made["out"])
    assert tokens.chat_template == TEMPLATE
    said = tokens.apply_chat_template([{"role": "user", "content": "w3 w4"}], tokenize=False)
    assert said == "<s>w3 w4<eot>"
    assert (tokens.eos_token, tokens.eos_token_id) == ("<eot>", 37)
    generation = transformers.GenerationConfig.from_pretrained(made["out"])
    assert generation.eos_token_id == [37, 38]


def test_it_computes_with_the_new_rope(made: dict[str, Any]) -> None:
    """The same weights under the new base's configuration, made here, give the same logits."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        made["out"], output_loading_info=True, dtype="auto"
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    states = {name: state for name, (_, state) in made["sides"].items()}
    wanted = {
        name: (
            new.float() + (states["post"][name].float() - states["base"][name].float())
        ).bfloat16()
        for name, new in states["new"].items()
    }
    config = transformers.LlamaConfig(**SIZES, max_position_embeddings=512, **NEW)
    other = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    other.load_state_dict(wanted)
    ids = torch.arange(30)[None].repeat(1, 5)
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, other.eval()(ids).logits)


def test_the_report_names_every_small_file(made: dict[str, Any]) -> None:
    rows = {row["name"]: row["from"] for row in made["done"]["files"]}
    found = {path.name for path in made["out"].iterdir()} - {"model.safetensors"}
    assert rows.keys() == found
    assert rows["chat_template.jinja"] == rows["generation_config.json"] == "post"
    assert rows["config.json"] == rows["tokenizer_config.json"] == "both"
    assert rows["tokenizer.json"] == "new base"
    assert rows["README.md"] == rows["deltastore.json"] == "written"
    assert made["planned"]["files"] == made["done"]["files"]
    provenance = json.loads((made["out"] / "deltastore.json").read_text())
    assert provenance["files"] == made["done"]["files"]
    assert provenance["config_left"] == made["done"]["config_left"] == []


def test_the_cards_of_all_are_combined(made: dict[str, Any]) -> None:
    from huggingface_hub import ModelCard

    data = ModelCard.load(made["out"] / "README.md").data
    assert (data.license, data.license_name) == ("other", "llama3.1 + llama3")
    assert data.language == ["fr", "en", "de"]


def test_fields_that_post_changed_and_that_stay_are_listed(
    made: dict[str, Any], tmp_path: Path
) -> None:
    place = made["place"]
    path = tmp_path / "post"
    states = {name: load(place / name) for name in ("base", "post")}
    config = json.loads((place / "post" / "config.json").read_text())
    changed = config | {"rope_theta": 7.0, "max_position_embeddings": 99}
    save(path, states["post"], config=changed, files={"README.md": "---\nlicense: [\n---\n"})
    with deltastore.open(tmp_path / "store") as store:
        artifact = store.extract(place / "base", path)
        done = store.apply(artifact, base=place / "new", out=tmp_path / "out")
    left = {row["field"]: row for row in done.config_left}
    assert left.keys() == {"rope_theta", "max_position_embeddings"}
    assert left["max_position_embeddings"] == {
        "field": "max_position_embeddings",
        "post": "99",
        "output": "512",
    }
    provenance = json.loads((tmp_path / "out" / "deltastore.json").read_text())
    assert provenance["config_left"] == done.config_left
    target = ["--base", str(place / "new"), "--out", str(tmp_path / "other"), "--dry-run"]
    command = ["--store", str(tmp_path / "store"), "apply", artifact.ref, *target]
    result = CliRunner().invoke(cli, command)
    said = result.stdout
    assert "README.md: the metadata of post's card is not used: it is no YAML." in result.stderr
    (row,) = [row for row in done.files if row["name"] == "README.md"]
    assert row["note"] == "the metadata of post's card is not used: it is no YAML"
    assert "2 fields that post changed and that stay the new base's" in said
    assert "    max_position_embeddings: 512; post has 99\n" in said


def test_restoring_gives_posts_rope_back(made: dict[str, Any], tmp_path: Path) -> None:
    """Post's weights under its base's rope would not be post."""
    place = made["place"]
    states = {name: load(place / name) for name in ("base", "post")}
    config = json.loads((place / "post" / "config.json").read_text())
    changed = config | {"max_position_embeddings": 99}
    save(tmp_path / "post", states["post"], config=changed)
    with deltastore.open(tmp_path / "store") as store:
        artifact = store.extract(place / "base", tmp_path / "post")
        done = store.apply(artifact, base=place / "base", out=tmp_path / "out")
    assert done.restored
    assert done.config_left == []
    got = json.loads((tmp_path / "out" / "config.json").read_text())
    assert got == changed | {"use_cache": True}


def test_a_small_file_that_cannot_be_read_leaves_nothing(
    made: dict[str, Any], tmp_path: Path
) -> None:
    place = made["place"]
    with (tmp_path / "big").open("wb") as file:
        file.truncate((64 << 20) + 1)
    new = tmp_path / "new"
    save(new, load(place / "new"), config=json.loads((place / "new" / "config.json").read_text()))
    (new / "vocab.txt").symlink_to(tmp_path / "big")
    with deltastore.open(place / "store") as store:
        for dry in (True, False):
            with pytest.raises(deltastore.errors.CheckpointError, match=r"vocab\.txt"):
                store.apply("chat", base=new, out=tmp_path / "out", dry_run=dry)
    assert {path.name for path in tmp_path.iterdir()} == {"big", "new"}


def test_a_classifier_is_loaded_as_one(made: dict[str, Any], tmp_path: Path) -> None:
    """Post with another head: the class and the labels follow, as its tensors do."""
    names = {0: "bad", 1: "fair", 2: "good"}
    config = transformers.LlamaConfig(
        **SIZES, max_position_embeddings=64, **OLD, pad_token_id=39, id2label=names
    )
    torch.manual_seed(5)
    model = transformers.LlamaForSequenceClassification(config).bfloat16()
    weights = load(made["place"] / "post")
    model.load_state_dict({n: t for n, t in weights.items() if n != "lm_head.weight"}, strict=False)
    model.save_pretrained(tmp_path / "post")
    with deltastore.open(tmp_path / "store") as store:
        artifact = store.extract(made["place"] / "base", tmp_path / "post")
        done = store.apply(artifact, base=made["place"] / "new", out=tmp_path / "out")
    assert done.config_left == []
    result, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype="auto"
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert result.config.architectures == ["LlamaForSequenceClassification"]
    assert result.config.id2label == names
    assert (result.config.num_labels, result.config.pad_token_id) == (3, 39)
    assert result.config.max_position_embeddings == 512
    assert torch.equal(result.score.weight, model.score.weight)
