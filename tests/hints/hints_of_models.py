"""Pairs that are none, and bases that do not fit."""

from __future__ import annotations

import json
import shlex

from hints_world import World, case, tensors, write_checkpoint


@case("lineage/kinship.py:refuse_same:1")
def post_is_base(world: World) -> None:
    ran = world.fails("extract", *world.pair("base"))
    assert ran.commands == ["--post", "--force"]
    world.works("extract", *world.pair("base"), "--force")


@case("lineage/kinship.py:check_kinship:1")
def post_is_unrelated(world: World) -> None:
    ran = world.fails("extract", *world.pair("unrelated"))
    assert ran.commands == ["--base", "--force"]
    world.works("extract", *world.pair("unrelated"), "--force")


@case("lineage/kinship.py:_check_configs:1")
def post_is_of_another_type(world: World) -> None:
    (world.root / "post4" / "config.json").write_text('{"model_type": "gpt2"}')
    ran = world.fails("extract", *world.pair("post4"))
    assert ran.commands == ["--base", "--force"]
    world.works("extract", *world.pair("post4"), "--force")


@case("lineage/similarity.py:judge:1")
def base_is_unrelated(world: World) -> None:
    ran = world.fails(*world.apply(base="unrelated"))
    world.follow(ran)
    world.works(*world.apply(base="unrelated"), ran.commands[1])


@case(
    "structure/checking.py:_mismatch_error:1",
    "structure/checking.py:_hint:5",
    "structure/architecture.py:explained:2",
)
def base_has_another_shape(world: World) -> None:
    ran = world.fails(*world.apply(base="other"))
    assert "--partial" in ran.commands
    world.works(*world.apply(base="other"), "--partial")


@case("structure/checking.py:_hint:3")
def base_has_other_names(world: World) -> None:
    ran = world.fails(*world.apply(base="renamed"))
    assert ran.commands[0].startswith("--map ")
    world.works(*world.apply(base="renamed"), *shlex.split(ran.commands[0]))


@case("structure/checking.py:_hint:2")
def base_has_those_names_already(world: World) -> None:
    ran = world.fails(*world.apply(), "--map", "^=model.")
    assert ran.commands == ["--map"]
    world.works(*world.apply())


def _quantised(world: World, name: str) -> None:
    """Have a model's weights be packed as GPTQ packs them."""
    path = world.root / name / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"layer.0.weight"', b'"l.0.qweight"   '))
    config = world.root / name / "config.json"
    quantised = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    config.write_text(json.dumps(json.loads(config.read_text()) | quantised))


@case("extraction/inputs.py:_refuse_quantised:1", "structure/checking.py:_hint:1")
def pair_is_quantised(world: World) -> None:
    for name in ("base", "post4"):
        _quantised(world, name)
    ran = world.fails("extract", *world.pair("post4", name="kept"))
    assert ran.commands == ["--restore-only"]
    world.works("extract", *world.pair("post4", name="kept"), *ran.commands)
    assert world.fails(*world.apply("kept")).commands == ["--base"]
    world.works(*world.apply("kept", base="base", out="restored"))


@case("merging/planning.py:_refuse_quantised:1")
def base_is_quantised(world: World) -> None:
    _quantised(world, "new")
    assert "the model that it was quantised from" in world.fails(*world.apply()).hint
    world.works(*world.apply(base="base"))


@case("structure/architecture.py:explained:1")
def base_is_another_model(world: World) -> None:
    world.follow(world.fails(*world.apply(base="stranger")))


@case(
    "merging/restoration.py:not_the_source:1",
    "extraction/chain.py:_load:1",
    "operations/compare.py:_refuse_restore_only:1",
)
def delta_is_to_restore_alone(world: World) -> None:
    world.works("extract", *world.pair("post4", name="kept"), "--restore-only")
    world.works("extract", *world.pair("post3", name="then", base="post4"))
    assert "own base" in world.fails("compose", "kept", "then").hint
    assert "not quantised" in world.fails("compare", "kept", "m:v1").hint
    assert "own base" in world.fails(*world.apply("kept", base="base"), "--scale", "0.5").hint
    world.works(*world.apply("kept", base="base"))
    world.works("compare", "m:v3", "m:v1")


@case("merging/recipes.py:recipes:1", "structure/checking.py:_hint:6")
def nothing_is_left(world: World) -> None:
    write_checkpoint(world.root / "two", {"x": tensors()["norm.weight"]})
    ran = world.fails(*world.apply(base="two"), "--partial")
    world.follow(ran, fill={"CKPT": world.path("two")})
    world.works(*world.apply())
