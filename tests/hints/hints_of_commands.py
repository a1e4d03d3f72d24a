"""What was typed wrong: the hint's form of it works."""

from __future__ import annotations

import pytest
from hints_world import World, case, edit, tensors, write_checkpoint

import deltastore
from deltastore.codecs import Exactness, registry
from deltastore.codecs.exact import ExactCodec
from deltastore.errors import UsageError


@case("cli/errors.py:_usage_hint:1")
def command_is_mistyped(world: World) -> None:
    ran = world.fails("lst")
    assert "Did you mean list?" in ran.hint
    assert "See 'deltastore --help'" in ran.hint
    world.works("--help")
    world.works("list")


@case(
    "refs.py:validate_name:1",
    "refs.py:validate_name:2",
    "refs.py:validate_tag:1",
    "refs.py:validate_tag:2",
    "refs.py:_digest:1",
)
def name_tag_or_digest_cannot_be_one(world: World) -> None:
    for name in ("my model", "con"):
        ran = world.fails("extract", *world.pair("post4", name=name))
        world.works("extract", *world.pair("post4", name=ran.commands[0]))
    assert "call the tag something else" in world.fails("tag", "m", "v7").hint
    world.works("tag", "m", "seven")
    assert "name:tag" in world.fails("show", "m:a tag").hint
    world.works("show", "m:seven")
    world.follow(world.fails("show", "sha256:12"))


@case("store/finding.py:_not_found:2", "store/finding.py:_what_there_is:1")
def ref_means_nothing(world: World) -> None:
    ran = world.fails("show", "mm")
    assert ran.hint == "Did you mean `m`?"
    world.works("show", *ran.commands)
    ran = world.fails("show", "m:t33")
    assert "the versions v1, v3" in ran.hint
    world.works("show", *ran.commands)
    world.follow(world.fails("show", "sha256:00000000"))


@case("store/finding.py:_not_found:1")
def ref_is_like_no_other(world: World) -> None:
    world.follow(world.fails("show", "sha256:00000000"))


@case("store/finding.py:resolve_version:1")
def digest_is_of_two_versions(world: World) -> None:
    world.works("extract", *world.pair("post1", name="twin"))
    digest = world.works("--json", "show", "twin").out.split('"digest": "')[1][:71]
    ran = world.fails("rm", digest)
    assert sorted(ran.commands) == ["m:v1", "twin:v1"]
    world.works("rm", ran.commands[0])


@case("store/publishing.py:_refuse_other_case:1", "store/tagging.py:refuse_other_case:1")
def only_case_is_different(world: World) -> None:
    ran = world.fails("extract", *world.pair("post4", name="M"))
    world.works("extract", *world.pair("post4", name=ran.commands[0]))
    ran = world.fails("tag", "m:v1", "T3")
    world.works("tag", "m:v1", ran.commands[0])


@case("operations/gc.py:gc:1")
def grace_is_negative(world: World) -> None:
    world.follow(world.fails("gc", "--grace=-1"))


@case("codecs/registry.py:get_codec:1", "codecs/registry.py:_wrong:1")
def codec_is_unknown(world: World) -> None:
    ran = world.fails("extract", *world.pair("post4"), "--codec", "other")
    assert "--codec" in ran.commands
    ran = world.fails("extract", *world.pair("post4"), "--codec", "exact:3")
    assert ran.commands == ["--codec exact"]
    world.works("extract", *world.pair("post4"), "--codec", "exact")


class Lossy(ExactCodec):
    name = "lossy"
    exactness: Exactness = "lossy"


@case("operations/extract.py:extract:1")
def codec_is_not_exact(world: World) -> None:
    world.monkeypatch.setitem(registry._registered, "lossy", Lossy)
    ran = world.fails("extract", *world.pair("post4"), "--restore-only", "--codec", "lossy")
    assert ran.commands == ["--codec"]
    world.works("extract", *world.pair("post4"), "--restore-only")


@case("merging/planning.py:MergeOptions.output_dtype:1")
def dtype_is_unknown(world: World) -> None:
    ran = world.fails(*world.apply(), "--dtype", "int3")
    assert ran.commands == ["--dtype"]
    world.works(*world.apply(), "--dtype", "float32")


@case(
    "tensor_names/selectors.py:Renaming.parse:1",
    "tensor_names/selectors.py:Renaming.names:1",
    "tensor_names/selectors.py:Renaming.names:2",
    "tensor_names/selectors.py:_no_map:1",
)
def map_is_none(world: World) -> None:
    for text in ("norm", "(norm=x", "norm|embed=layer.0", "nothing-such=x"):
        ran = world.fails(*world.apply(base="renamed"), "--map", text)
        assert ran.hint
    world.works("show", "m:v3")
    world.works(*world.apply(base="renamed"), "--map", "^=model.")


@case(
    "tensor_names/selectors.py:ScaleRule.parse:1",
    "tensor_names/selectors.py:ScaleRule.checked:1",
    "tensor_names/selectors.py:Scales.__init__:1",
    "tensor_names/selectors.py:Scales.check_used:1",
    "tensor_names/selectors.py:checked_scales:1",
    "tensor_names/selectors.py:checked_scales:2",
    "tensor_names/selectors.py:checked_scales:3",
)
def scale_is_none(world: World) -> None:
    for options in (
        ("--scale-for", "layer.*"),
        ("--scale-for", "layer.*=nan"),
        ("--scale-for", "layer.*=1,2"),
        ("--scale-for", "nothing-such=1"),
        ("--scale", "1", "--scale", "2"),
        ("--scale", "inf"),
    ):
        world.fails(*world.apply(), *options)
    with deltastore.open(world.store) as store:
        new = {"base": world.path("new"), "out": world.path("out")}
        for refs, scale in (([], 1.0), (["m:v3"], [1.0, 2.0]), (["m:v3"], float("inf"))):
            with pytest.raises(UsageError):
                store.apply(refs, scale=scale, **new)
    world.works("show", "m:v3")
    world.works(*world.apply(), "--scale-for", "layer.*=0.7", "--scale", "1")


@case("operations/compare.py:compare:1")
def one_delta_is_compared(world: World) -> None:
    with deltastore.open(world.store) as store, pytest.raises(UsageError):
        store.compare("m:v1")
    world.works("list")
    world.works("compare", "m:v1", "m:v3")


@case("operations/compose.py:compose:1")
def one_delta_is_composed(world: World) -> None:
    world.works("extract", *world.pair("post4", name="then", base="post3"))
    with deltastore.open(world.store) as store, pytest.raises(UsageError):
        store.compose(["m:v3"])
    world.works("compose", "m:v3", "then", "--base", world.path("base"))


@case(
    "comparison/plot.py:check_plot:1",
    "comparison/plot.py:check_plot:2",
    "comparison/plot.py:check_plot:3",
    "comparison/plot.py:check_plot:5",
)
def plot_cannot_be_drawn(world: World) -> None:
    compare = ("compare", "m:v1", "m:v3", "--plot")
    refs = [f"m:v{number}" for number in (1, 3)] * 4
    (world.root / "a.png").mkdir()
    assert world.fails(*compare, "a.txt").commands[0].startswith("--plot ")
    world.follow(world.fails(*compare, "there/is/none.png"))
    assert world.fails(*compare, "a.png").commands == ["--plot"]
    assert "leave out" in world.fails("compare", *refs, "--plot", "b.png").hint
    world.works("compare", *refs)


@case(
    "cli/place.py:configured_index:1",
    "cli/place.py:configured_stores:1",
    "cli/place.py:configured_stores:2",
    "cli/place.py:configured_stores:3",
    "cli/place.py:configured_stores:4",
    "cli/place.py:_configured_path:2",
)
def config_file_is_wrong(world: World) -> None:
    config = world.root / "config.toml"
    world.monkeypatch.delenv("DELTASTORE_STORE")
    world.monkeypatch.setenv("DELTASTORE_CONFIG", str(config))
    assert "Create the file" in world.fails("--store", "team", "list").hint
    for text in ("[", "stores = 1", "[stores.team]", "[stores.team]\npath='store'\nindex=1"):
        config.write_text(text)
        ran = world.fails("--store", "team", "list")
        assert "Correct " in ran.hint or "Write  " in ran.hint
    config.write_text('[stores.team]\npath = "store"\nindex = "local"\n')
    world.works("--store", "team", "list")


@case("cli/place.py:_configured_path:1")
def config_file_has_a_url(world: World) -> None:
    config = world.root / "config.toml"
    world.monkeypatch.setenv("DELTASTORE_CONFIG", str(config))
    config.write_text('[stores.team]\nblobs = "https://x"\n')
    world.monkeypatch.delenv("DELTASTORE_STORE")
    assert "'path'" in world.fails("--store", "team", "list").hint
    config.write_text('[stores.team]\npath = "store"\n')
    world.works("--store", "team", "list")


@case("operations/list.py:ref_of_pair:1", "operations/list.py:ref_of_pair:2")
def pair_means_no_delta(world: World) -> None:
    pair = ("--from-base", world.path("base"), "--from-post", world.path("post4"))
    new = ("apply", *pair, "--base", world.path("new"), "--out", "out")
    world.follow(world.fails(*new))
    world.works("extract", *world.pair("post4"))
    world.works(*new)
    # Another artifact of the same pair under another name: its small files differ.
    edit(world.root / "post4" / "config.json", initializer_range=0.5)
    world.works("extract", *world.pair("post4", name="again"))
    assert "one of these refs" in world.fails(*new[:-1], "out2").hint
    world.works(*world.apply("again"[:5], out="out2"))


@case(
    "operations/list.py:_near:1",
    "operations/list.py:_near:2",
    "operations/list.py:_near:3",
)
def pair_is_near_to_another(world: World) -> None:
    def pair(base: str, post: str) -> list[str]:
        return ["--from-base", base, "--from-post", post, "--base", world.path("new")]

    world.follow(world.fails("apply", *pair("base", world.path("new")), "--out", "out"))
    world.follow(world.fails("apply", *pair("nothing", "such"), "--out", "out"))
    for name in ("base", "post3"):
        write_checkpoint(world.root / "others" / name, tensors(8 if name == "base" else 7))
    others = [str(world.root / "others" / name) for name in ("base", "post3")]
    assert world.fails("apply", *pair(*others), "--out", "out").hint.startswith("m:v3 is of models")
    world.works(*world.apply("m:v3"))


@case("lineage/source_base.py:open_source_base:1")
def base_is_not_known(world: World) -> None:
    world.works("extract", *world.pair("post4", name="then", base="post3"))
    (world.root / "base").rename(world.root / "moved")
    ran = world.fails("compose", "m:v3", "then")
    assert "--base CKPT" in ran.commands
    world.works("compose", "m:v3", "then", "--base", world.path("moved"))


@case("lineage/source_base.py:not_source_base:1")
def base_is_another(world: World) -> None:
    world.works("extract", *world.pair("post4", name="then", base="post3"))
    ran = world.fails("compose", "m:v3", "then", "--base", world.path("new"))
    assert ran.commands == ["--base", "deltastore apply"]
    world.works("compose", "m:v3", "then", "--base", world.path("base"))


@case("extraction/chain.py:_require_chain:1")
def deltas_do_not_follow(world: World) -> None:
    world.works("extract", *world.pair("post4", name="then", base="post3"))
    assert world.fails("compose", "then", "m:v3").commands == ["deltastore compose m:v3 then:v1"]
    world.works("compose", "m:v3", "then:v1", "--base", world.path("base"))
    world.follow(world.fails("compose", "m:v1", "m:v3"))


@case("operations/compare.py:_refuse_strangers:1")
def deltas_have_no_tensor_in_common(world: World) -> None:
    world.works("extract", *world.pair("stranger2", name="stranger", base="stranger"))
    world.follow(world.fails("compare", "m:v1", "stranger"))
