"""What is no checkpoint, or one that cannot be read."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from hints_world import World, case, tensors, write_checkpoint


def _mended(world: World, *, name: str = "post4") -> None:
    world.works("extract", *world.pair(name))


@case(
    "checkpoint/location.py:_not_found:1",
    "checkpoint/location.py:_not_found:2",
    "checkpoint/location.py:_not_found:3",
)
def path_does_not_exist(world: World) -> None:
    def hint(path: str) -> str:
        return world.fails("extract", "--base", path, "--post", world.path("post4")).hint

    assert "no directory" in hint(str(world.root / "none" / "base"))
    assert "base" in hint(str(world.root / "bsae"))
    (world.root / "empty").mkdir()
    world.follow(
        world.fails("extract", "--base", str(world.root / "empty/x"), "--post", world.path("post4"))
    )
    _mended(world)


@case("checkpoint/foreign.py:no_weights:1", "checkpoint/foreign.py:no_weights:3")
def directory_has_no_weights(world: World) -> None:
    (world.root / "post4" / "model.safetensors").unlink()
    assert "Give a directory with" in world.fails("extract", *world.pair("post4")).hint
    _mended(world, name="post3")


@case("checkpoint/foreign.py:no_weights:2")
def weights_are_further_down(world: World) -> None:
    (world.root / "above").mkdir()
    (world.root / "post4").rename(world.root / "above" / "below")
    assert "below" in world.fails("extract", *world.pair("above")).hint
    _mended(world, name="above/below")


@case("checkpoint/foreign.py:unreadable_file:1")
def file_is_no_weights(world: World) -> None:
    assert "directory" in world.fails("extract", *world.pair("post4/config.json")).hint
    _mended(world)


@case("checkpoint/header.py:_corrupt:1")
def weights_are_cut_short(world: World) -> None:
    path = world.root / "post4" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert "etch" in world.fails("extract", *world.pair("post4")).hint
    path.write_bytes(whole)
    _mended(world)


@case("checkpoint/header.py:_header_bytes:1")
def weights_are_a_pointer_of_git(world: World) -> None:
    path = world.root / "post4" / "model.safetensors"
    whole = path.read_bytes()
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert world.fails("extract", *world.pair("post4")).commands == ["git lfs pull"]
    path.write_bytes(whole)
    _mended(world)


@case("checkpoint/header.py:unsupported_dtype:1")
def dtype_is_not_supported(world: World) -> None:
    path = world.root / "post4" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"BF16"', b'"BF61"'))
    assert "bfloat16" in world.fails("extract", *world.pair("post4")).hint
    path.write_bytes(whole)
    _mended(world)


def _index(world: World, name: str, files: dict[str, str]) -> None:
    (world.root / name / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": files})
    )


@case("checkpoint/layout.py:_more_than_named:1", "checkpoint/layout.py:_more_than_named:3")
def index_lies_beside_a_whole_model(world: World) -> None:
    directory = world.root / "post4"
    for number, (name, array) in enumerate(tensors(4).items(), 1):
        write_checkpoint(directory, {name: array}, file=f"model-0000{number}-of-00003.safetensors")
    _index(
        world,
        "post4",
        {n: f"model-0000{i}-of-00003.safetensors" for i, n in enumerate(tensors(4), 1)},
    )
    ran = world.fails("extract", *world.pair("post4"))
    for path in ("model.safetensors", "model.safetensors.index.json"):
        assert str(directory / path) in ran.hint
        _mended(world, name=f"post4/{path}")


@case("checkpoint/layout.py:_more_than_named:2")
def shard_is_not_named(world: World) -> None:
    directory = world.root / "post4"
    (directory / "model.safetensors").unlink()
    names = list(tensors(4))
    for number, name in enumerate(names, 1):
        file = f"model-0000{number}-of-00003.safetensors"
        write_checkpoint(directory, {name: tensors(4)[name]}, file=file)
    _index(
        world,
        "post4",
        {n: f"model-0000{i}-of-00003.safetensors" for i, n in enumerate(names[:2], 1)},
    )
    ran = world.fails("extract", *world.pair("post4"))
    index = directory / "model.safetensors.index.json"
    assert str(index) in ran.hint
    index.unlink()
    _mended(world)


@case("checkpoint/layout.py:_contradiction:1")
def shards_lie_beside_a_whole_model(world: World) -> None:
    directory = world.root / "post4"
    for number, (name, array) in enumerate(tensors(4).items(), 1):
        write_checkpoint(directory, {name: array}, file=f"model-0000{number}-of-00003.safetensors")
    assert "model.safetensors" in world.fails("extract", *world.pair("post4")).hint
    _mended(world, name="post4/model.safetensors")


@case("checkpoint/layout.py:_indexed:1")
def shard_is_missing(world: World) -> None:
    directory = world.root / "post4"
    whole = directory / "model.safetensors"
    _index(world, "post4", dict.fromkeys(tensors(4), "model-00001-of-00001.safetensors"))
    whole.rename(world.root / "kept")
    assert world.fails("extract", *world.pair("post4")).commands == ["hf download org/name"]
    shutil.move(world.root / "kept", directory / "model-00001-of-00001.safetensors")
    _mended(world)


@case("checkpoint/layout.py:_of_kind:1")
def there_are_two_indices(world: World) -> None:
    directory = world.root / "post4"
    whole = directory / "model.safetensors"
    whole.rename(directory / "a.safetensors")
    for name in ("a", "b"):
        (directory / f"{name}.safetensors.index.json").write_text(
            json.dumps({"weight_map": dict.fromkeys(tensors(4), "a.safetensors")})
        )
    ran = world.fails("extract", *world.pair("post4"))
    assert "a.safetensors.index.json" in ran.hint
    _mended(world, name="post4/a.safetensors.index.json")


@case("checkpoint/index.py:_bad:1")
def index_is_none(world: World) -> None:
    directory = world.root / "post4"
    (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
    index = directory / "model.safetensors.index.json"
    index.write_text('{"weight_map": 1}')
    assert "index" in world.fails("extract", *world.pair("post4")).hint
    index.unlink()
    _mended(world)


@case(
    "checkpoint/files.py:strict_json:1",
    "checkpoint/files.py:strict_json:2",
    "checkpoint/files.py:strict_json:3",
    "checkpoint/files.py:strict_json:4",
    "checkpoint/files.py:read_json:1",
)
def config_is_no_json(world: World) -> None:
    path = world.root / "post4" / "config.json"
    good = path.read_text()
    deep, many = "[" * 900 + "]" * 900, "[" + "{}," * 3_000_000 + "1]"
    for text in ("{", f'{{"a": {deep}}}', f'{{"a": {many}}}', "[]", " " * (40 << 20) + "{}"):
        path.write_text(text)
        assert "the file" in world.fails("extract", *world.pair("post4")).hint
    path.write_text(good)
    _mended(world)


@case("checkpoint/pieces.py:require_whole:1")
def one_shard_of_several(world: World) -> None:
    directory = world.root / "post4"
    whole = directory / "model.safetensors"
    whole.rename(directory / "model-00001-of-00002.safetensors")
    ran = world.fails("extract", *world.pair("post4/model-00001-of-00002.safetensors"))
    assert ran.commands == ["hf download org/name"]
    shutil.copy(
        directory / "model-00001-of-00002.safetensors",
        directory / "model-00001-of-00001.safetensors",
    )
    (directory / "model-00001-of-00002.safetensors").unlink()
    _mended(world)


@case("checkpoint/pieces.py:require_complete:2")
def some_shards_are_missing(world: World) -> None:
    directory = world.root / "post4"
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    assert world.fails("extract", *world.pair("post4")).code == 63
    (directory / "model-00001-of-00002.safetensors").rename(directory / "model.safetensors")
    _mended(world)


@case("lineage/kinship.py:refuse_adapter:1", "lineage/kinship.py:refuse_adapter:3")
def post_is_an_adapter(world: World) -> None:
    directory = world.root / "adapter"
    array = tensors()["norm.weight"].reshape(1, -1)
    names = (f"base_model.model.layer.0.lora_{side}.weight" for side in "AB")
    write_checkpoint(directory, dict.fromkeys(names, array), file="adapter_model.safetensors")
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "merge_and_unload" in world.fails("extract", *world.pair("adapter")).hint
    _mended(world)


@case("checkpoint/files.py:open_regular:1", "checkpoint/files.py:open_regular:2")
def weights_are_no_file(world: World) -> None:
    path = world.root / "post4" / "model.safetensors"
    path.rename(world.root / "kept")
    path.symlink_to("none")
    assert world.fails("extract", *world.pair("post4")).commands == ["hf download org/name"]
    path.unlink()
    os.mkfifo(path)
    assert "directory or file" in world.fails("extract", *world.pair("post4")).hint
    path.unlink()
    (world.root / "kept").rename(path)
    _mended(world)


@case("checkpoint/location.py:locate:2")
def link_leads_nowhere(world: World) -> None:
    (world.root / "link").symlink_to("none")
    assert "path of its directory" in world.fails("extract", *world.pair("link")).hint
    (world.root / "link").unlink()
    (world.root / "link").symlink_to("post4")
    _mended(world, name="link")


@case("checkpoint/index.py:check_index:1")
def index_is_of_another_saving(world: World) -> None:
    directory = world.root / "post4"
    (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
    names = [*tensors(4), "of.another.weight"]
    _index(world, "post4", dict.fromkeys(names, "model-00001-of-00001.safetensors"))
    assert "different savings" in world.fails("extract", *world.pair("post4")).hint
    (directory / "model.safetensors.index.json").unlink()
    _mended(world)


@case("checkpoint/layout.py:_indexed:2")
def index_names_two_kinds(world: World) -> None:
    directory = world.root / "post4"
    (directory / "model.safetensors").rename(directory / "a.safetensors")
    (directory / "b.bin").write_bytes(b"")
    names = list(tensors(4))
    _index(world, "post4", {names[0]: "a.safetensors", names[1]: "b.bin"})
    assert "index" in world.fails("extract", *world.pair("post4")).hint
    (directory / "model.safetensors.index.json").unlink()
    (directory / "b.bin").unlink()
    _mended(world)


@case("checkpoint/reader.py:_merged:1")
def tensor_is_in_two_files(world: World) -> None:
    directory = world.root / "post4"
    (directory / "model.safetensors").rename(directory / "a.safetensors")
    shutil.copy(directory / "a.safetensors", directory / "b.safetensors")
    assert "the file to read" in world.fails("extract", *world.pair("post4")).hint
    _mended(world, name="post4/b.safetensors")


@case("checkpoint/reader.py:open_checkpoint:1")
def weights_hold_nothing(world: World) -> None:
    write_checkpoint(world.root / "nothing", {})
    assert "weights in it" in world.fails("extract", *world.pair("nothing")).hint
    _mended(world)


@case("checkpoint/pieces.py:require_complete:1")
def shards_of_two_savings(world: World) -> None:
    directory = world.root / "post4"
    (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
    write_checkpoint(directory, tensors(3), file="model-00001-of-00002.safetensors")
    assert "all but one saving" in world.fails("extract", *world.pair("post4")).hint
    (directory / "model-00001-of-00002.safetensors").unlink()
    _mended(world)


@case("checkpoint/pieces.py:require_one_rank:1")
def weights_of_one_process(world: World) -> None:
    shutil.copytree(world.root / "post4", world.root / "ranks")
    (world.root / "ranks" / "model.safetensors").rename(
        world.root / "ranks" / "model_world_size_8_rank_0.pt"
    )
    assert world.fails("extract", *world.pair("ranks")).hint
    _mended(world)


@case(
    "lineage/pair_structure.py:check_pair_structure:2",
    "lineage/pair_structure.py:check_pair_structure:3",
)
def post_is_another_model(world: World) -> None:
    assert "Give" in world.fails("extract", *world.pair("stranger2")).hint
    _mended(world)


@case("checkpoint/pickle_child.py:_failure:1")
def pickle_is_damaged(world: World) -> None:
    directory = world.root / "post4"
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"PK\x03\x04 and nothing more")
    assert world.fails("extract", *world.pair("post4")).hint
    (directory / "pytorch_model.bin").unlink()
    (directory / "model.safetensors").write_bytes(whole)
    _mended(world)


@case("checkpoint/pickle_child.py:_failure:2")
def pickle_is_unsafe(world: World) -> None:
    torch = pytest.importorskip("torch")
    directory = world.root / "post4"
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").unlink()
    torch.save({"a": torch.ones(2), "b": complex}, directory / "pytorch_model.bin")
    assert world.fails("extract", *world.pair("post4")).hint
    (directory / "pytorch_model.bin").unlink()
    (directory / "model.safetensors").write_bytes(whole)
    _mended(world)


@case("checkpoint/location.py:_pinned:1", "checkpoint/location.py:_pinned:2")
def path_looks_like_a_hub_id(world: World) -> None:
    shutil.copytree(world.root / "post4", world.root / "org" / "post4")
    ran = world.fails("extract", "--base", world.path("base"), "--post", "org/post5")
    assert "org/post4" in ran.hint
    assert ran.commands == ["hf download org/post5"]
    _mended(world, name="org/post4")


@case("checkpoint/files.py:read_whole:1")
def small_file_is_large(world: World) -> None:
    for name in ("chat_template.jinja", "tokenizer.json", "README.md", "merges.txt"):
        path = world.root / "post4" / name
        path.touch()
        os.truncate(path, 3 << 30)
        ran = world.run("extract", *world.pair("post4"))
        assert ran.code == 0 or "Move it out" in ran.hint
        path.unlink()
    _mended(world)
