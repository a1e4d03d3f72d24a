"""Which files of a directory are read, and which disorder is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from deltastore.checkpoint import open_checkpoint
from deltastore.checkpoint.hub import Unwatched
from deltastore.errors import CheckpointCorruptError, CheckpointError, NoWeightsError


class Warned(Unwatched):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def warn(self, message: str) -> None:
        self.messages.append(message)

    @property
    def only(self) -> str:
        """The one message since this was last asked for."""
        (message,) = self.messages
        self.messages.clear()
        return message


def names(path: Path) -> list[str]:
    with open_checkpoint(path) as checkpoint:
        return list(checkpoint.tensors)


def index(path: Path, weight_map: Any, **fields: Any) -> None:
    path.write_text(json.dumps({"weight_map": weight_map} | fields))


def test_one_file_directory_and_path(tmp_path: Path, save: Any) -> None:
    path = save(tmp_path / "model.safetensors", "a")
    assert names(tmp_path) == ["a"]
    assert names(path) == ["a"]
    path.rename(tmp_path / "other.safetensors")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "other.safetensors") == ["a"]


def test_a_file_without_suffix_is_known_by_its_bytes(tmp_path: Path, save: Any) -> None:
    # As the blobs in the Hub's cache.
    assert names(save(tmp_path / "0a1b", "a")) == ["a"]


def test_an_index_may_be_given_itself(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    assert names(path) == ["a", "b", "c", "d", "e"]
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config == {"model_type": "llama"}
    path.rename(sharded / "weights.safetensors.index.json")
    assert names(sharded) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("alone", [True, False])
def test_one_shard_is_no_model(sharded: Path, alone: bool) -> None:
    path = sharded / "model-00003-of-00003.safetensors"
    if alone:
        path = path.rename(sharded.parent / path.name)
    with pytest.raises(CheckpointCorruptError, match="one of 3 shards") as caught:
        open_checkpoint(path)
    wanted = "Fetch the other 2" if alone else f"all of them: {sharded}."
    assert wanted in caught.value.hint


@pytest.mark.parametrize(
    "name", ["model-00001-of-00001.safetensors", "model-00001-of-00001.fp16.safetensors"]
)
def test_one_shard_of_one_is_a_model(tmp_path: Path, save: Any, name: str) -> None:
    assert names(save(tmp_path / name, "a")) == names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "name",
    [
        "00002-of-00003.safetensors",
        "consolidated-00002-of-00003.safetensors",
        "ft_model_00002-of-00003.safetensors",
        "model.fp16-00002-of-00003.safetensors",
        "model-00002-of-00003.fp16.safetensors",
        "shard-00001-model-00002-of-00003.safetensors",
    ],
)
def test_a_shard_is_known_however_it_is_called(tmp_path: Path, save: Any, name: str) -> None:
    path = save(tmp_path / name, "a")
    with pytest.raises(CheckpointCorruptError, match="one of 3 shards"):
        open_checkpoint(path)
    with pytest.raises(CheckpointCorruptError, match="1 of 3 shards"):
        open_checkpoint(tmp_path)


def test_variants_are_families_of_their_own(sharded: Path, save: Any) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    save(sharded / "model-00001-of-00002.fp16.safetensors", "a")
    assert names(sharded) == ["a", "b", "c", "d", "e"]


def test_numbered_shards_without_an_index(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    assert names(sharded) == ["a", "b", "c", "d", "e"]
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointCorruptError, match=r"2 of 3 shards.*missing are the numbers 2"):
        open_checkpoint(sharded)


def test_a_shard_number_in_a_name_is_not_believed(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "model-00001-of-999999999.safetensors", "a")
    with pytest.raises(CheckpointCorruptError, match="1 of 999999999 shards"):
        open_checkpoint(tmp_path)


def test_shards_of_two_savings(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "model-00001-of-00001.safetensors", "a")
    save(tmp_path / "model-00002-of-00002.safetensors", "b")
    with pytest.raises(CheckpointCorruptError, match="several savings"):
        open_checkpoint(tmp_path)


def test_several_files_without_index_or_numbers(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "x.safetensors", "a")
    save(tmp_path / "y.safetensors", "b")
    assert names(tmp_path) == ["a", "b"]
    save(tmp_path / "z.safetensors", "b")
    with pytest.raises(CheckpointCorruptError, match=r"'b' is in both .*y.saf.* and .*z.saf"):
        open_checkpoint(tmp_path)


def test_the_main_file_wins_over_its_neighbours(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "model.safetensors", "a")
    save(tmp_path / "model.fp16.safetensors", "a")
    save(tmp_path / "value_head.safetensors", "v")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]
        assert checkpoint.ignored == ("model.fp16.safetensors", "value_head.safetensors")


def test_a_main_file_beside_numbered_shards(sharded: Path, save: Any) -> None:
    path = save(sharded / "model.safetensors", "a")
    index = sharded / "model.safetensors.index.json"
    with pytest.raises(CheckpointCorruptError, match=r"both model.safetensors and") as caught:
        open_checkpoint(sharded)
    assert f"{path} or {index}" in caught.value.hint
    warned = Warned()
    with open_checkpoint(path, downloads=warned) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]
    assert "read alone, without model-00001-of-00003" in warned.only
    with open_checkpoint(index, downloads=warned) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b", "c", "d", "e"]
        assert checkpoint.ignored == ("model.safetensors",)
    assert "also holds model.safetensors," in warned.only
    index.unlink()
    with pytest.raises(CheckpointCorruptError, match=r"both model.safetensors and shards"):
        open_checkpoint(sharded)


def test_a_value_head_beside_pickled_weights_is_not_the_model(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "value_head.safetensors", "v")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]
        assert checkpoint.ignored == ("value_head.safetensors",)
    # An index whose shards are not there says what the model is all the same.
    index(tmp_path / "model.safetensors.index.json", {"a": "model-00001-of-00002.safetensors"})
    with pytest.raises(CheckpointCorruptError, match="are missing"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        "adapter_model.safetensors",
        "consolidated.safetensors",
        "consolidated-00001-of-00002.safetensors",
        "optimizer.safetensors",
        "training_args.bin",
        "optimizer.pt",
        "rng_state_0.pth",
        "pytorch_model.bin",
    ],
)
def test_other_files_beside_a_model_are_left_alone(sharded: Path, other: str) -> None:
    (sharded / other).write_bytes(b"no weights")
    assert names(sharded) == ["a", "b", "c", "d", "e"]
    (sharded / "model.safetensors.index.json").unlink()
    assert names(sharded) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("only", ["adapter_model.safetensors", "consolidated.safetensors"])
def test_a_lone_adapter_or_consolidated_file_is_read(tmp_path: Path, save: Any, only: str) -> None:
    save(tmp_path / only, "a")
    assert names(tmp_path) == ["a"]


def test_missing_shards_are_listed(sharded: Path) -> None:
    for i in (1, 3):
        (sharded / f"model-{i:05d}-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointCorruptError, match="2 are missing") as caught:
        open_checkpoint(sharded)
    assert caught.value.facts["missing"] == [
        "model-00001-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ]


def test_a_dangling_shard_is_named(sharded: Path) -> None:
    path = sharded / "model-00002-of-00003.safetensors"
    path.unlink()
    path.symlink_to(sharded / "nowhere")
    with pytest.raises(CheckpointCorruptError, match=r"00002.*dangling symbolic link"):
        open_checkpoint(sharded)


def test_shards_may_be_links_out_of_the_directory(sharded: Path, tmp_path: Path) -> None:
    path = sharded / "model-00002-of-00003.safetensors"
    path.symlink_to(path.rename(tmp_path / "blob"))
    with open_checkpoint(sharded) as checkpoint:
        assert checkpoint.shards[1].path.resolve() == (tmp_path / "blob").resolve()


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointCorruptError, match="no regular file"):
        open_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NoWeightsError):
        open_checkpoint(tmp_path / "pipe")


def test_shards_that_the_index_does_not_name(sharded: Path, save: Any) -> None:
    warned = Warned()
    save(sharded / "extra.safetensors", "x")
    with open_checkpoint(sharded, downloads=warned) as checkpoint:
        assert checkpoint.ignored == ("extra.safetensors",)
    assert warned.messages == []
    # Of another saving: they are left there.
    left = [f"model-0000{i}-of-00004.safetensors" for i in (3, 4)]
    for name in left:
        save(sharded / name, "x")
    with open_checkpoint(sharded, downloads=warned) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b", "c", "d", "e"]
        assert checkpoint.ignored == ("extra.safetensors", *left)
    assert f"holds {', '.join(left)}, which model.safetensors.index.json does" in warned.only


def test_a_shard_of_the_same_saving_that_the_index_does_not_name(
    sharded: Path, reindex: Any
) -> None:
    """Part of the model would be missing."""
    reindex(d=None, e=None)
    with pytest.raises(CheckpointCorruptError, match=r"the same saving .* model-00003") as caught:
        open_checkpoint(sharded)
    assert caught.value.facts["unnamed"] == ["model-00003-of-00003.safetensors"]
    warned = Warned()
    path = sharded / "model.safetensors.index.json"
    with open_checkpoint(path, downloads=warned) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b", "c"]
    assert "model-00003-of-00003.safetensors" in warned.only


def test_a_tensor_in_the_index_only(sharded: Path, reindex: Any) -> None:
    reindex(x="model-00001-of-00003.safetensors")
    with pytest.raises(CheckpointCorruptError, match=r"not in their shards: x \(model-00001"):
        open_checkpoint(sharded)


def test_a_tensor_in_another_shard(sharded: Path, reindex: Any) -> None:
    reindex(a="model-00002-of-00003.safetensors")
    with pytest.raises(CheckpointCorruptError, match=r"not in their shards: a \(model-00002"):
        open_checkpoint(sharded)


def test_a_tensor_in_a_shard_only(sharded: Path, reindex: Any) -> None:
    reindex(d=None)
    warned = Warned()
    with open_checkpoint(sharded, downloads=warned) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b", "c", "d", "e"]
    assert "does not name d, which its shards hold" in warned.only


def test_a_head_that_only_the_index_names(sharded: Path, reindex: Any, save: Any) -> None:
    """It is the embeddings under a second name, where the model ties the two."""
    first = "model-00001-of-00003.safetensors"
    save(sharded / first, "a", "model.embed_tokens.weight")
    with_head = {"b": None, "model.embed_tokens.weight": first, "lm_head.weight": first}
    reindex(**with_head)
    with open_checkpoint(sharded) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "c", "d", "e", "model.embed_tokens.weight"]
    (sharded / "config.json").write_text('{"model_type": "llama", "tie_word_embeddings": false}')
    with pytest.raises(CheckpointCorruptError, match=r"1 tensors .* not in their shards: lm_head"):
        open_checkpoint(sharded)
    reindex(y=first, **with_head)
    with pytest.raises(CheckpointCorruptError, match=r"shards: lm_head\.weight .*, y "):
        open_checkpoint(sharded)


def test_a_tensor_in_two_shards(sharded: Path, save: Any) -> None:
    save(sharded / "model-00002-of-00003.safetensors", "c", "a")
    with pytest.raises(CheckpointCorruptError, match="'a' is in both"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    "filename",
    [
        "../model.safetensors",
        "sub/x.safetensors",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a\\b",
        "a\x00b",
        5,
    ],
)
def test_an_index_does_not_leave_its_directory(sharded: Path, reindex: Any, filename: Any) -> None:
    reindex(a=filename)
    with pytest.raises(CheckpointCorruptError, match="expected a file name"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no valid JSON"),
        ("[]", "expected an object"),
        ("{}", "no weight_map"),
        ('{"weight_map": []}', "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "appears twice"),
        ('{"metadata": 1, "weight_map": {"a": "x"}}', "metadata of type int"),
        ('{"weight_map": {"a": "config.json"}}', "weight files of one kind"),
    ],
)
def test_a_malformed_index(sharded: Path, text: str, message: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointCorruptError, match=f"index.json.*{message}"):
        open_checkpoint(sharded)


def test_an_index_of_both_kinds(sharded: Path, reindex: Any) -> None:
    (sharded / "x.bin").touch()
    reindex(a="x.bin")
    with pytest.raises(CheckpointCorruptError, match="weight files of one kind"):
        open_checkpoint(sharded)


def test_several_indices(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    (sharded / "other.safetensors.index.json").write_text("{}")
    assert names(sharded) == ["a", "b", "c", "d", "e"]
    path.rename(sharded / "more.safetensors.index.json")
    with pytest.raises(CheckpointError, match="several indices"):
        open_checkpoint(sharded)


def test_an_index_without_metadata(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    index(path, json.loads(path.read_text())["weight_map"])
    with open_checkpoint(sharded) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([], "found no files"),
        (["README.md", "config.json"], "README.md, config.json"),
        (["model.gguf"], "GGUF"),
        (["training_args.bin", "optimizer.pt"], "optimizer.pt, training_args.bin"),
    ],
)
def test_no_weights_says_what_is_there(tmp_path: Path, files: list[str], found: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(NoWeightsError, match=found) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.facts["found"] == sorted(files)


@pytest.mark.parametrize("below", ["model", "snapshots/0123"])
def test_no_weights_points_to_those_below(tmp_path: Path, save: Any, below: str) -> None:
    save(tmp_path / below / "model.safetensors", "a")
    with pytest.raises(NoWeightsError) as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path / below) in caught.value.hint


@pytest.mark.parametrize("name", ["x.gguf", "notes.txt", "config.json", "noext"])
def test_a_file_that_holds_no_weights(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("nothing to see here")
    with pytest.raises(NoWeightsError, match=name):
        open_checkpoint(tmp_path / name)


def test_small_files_are_found(sharded: Path, tmp_path: Path) -> None:
    (sharded / "tokenizer.json").symlink_to(tmp_path / "blob")
    (tmp_path / "blob").write_text("{}")
    (sharded / "LICENSE.txt").write_text("x")
    (sharded / "chat_templates").mkdir()
    (sharded / "chat_templates" / "tool.jinja").write_text("x")
    (sharded / "chat_templates" / "tool.exe").write_text("x")
    (sharded / "vocab.txt").mkdir()
    (sharded / "merges.txt").symlink_to(tmp_path / "nowhere")
    (sharded / "secret.txt").write_text("x")
    with open_checkpoint(sharded) as checkpoint:
        assert checkpoint.files == {
            name: sharded / name
            for name in (
                "LICENSE.txt",
                "chat_templates/tool.jinja",
                "config.json",
                "tokenizer.json",
            )
        }


def test_a_lone_file_takes_no_foreign_neighbours(tmp_path: Path, save: Any) -> None:
    path = save(tmp_path / "x.safetensors", "a")
    (tmp_path / "README.md").write_text("of something else")
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.files == {}
        assert checkpoint.config is None
    (tmp_path / "config.json").write_text("{}")
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.files) == {"config.json", "README.md"}
        assert checkpoint.config == {}
