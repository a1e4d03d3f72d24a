from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltastore.errors import RefSyntaxError
from deltastore.refs import Ref, default_name, parse_ref, validate_name, validate_tag

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("llama3-instruct", Ref(name="llama3-instruct")),
        ("Qwen2.5-7B_it:v12", Ref(name="Qwen2.5-7B_it", version=12)),
        ("m:prod", Ref(name="m", tag="prod")),
        ("m:version2", Ref(name="m", tag="version2")),
        ("v2", Ref(name="v2")),
        (f"m@sha256:{HEX}", Ref(name="m", digest=f"sha256:{HEX}")),
        ("m@sha256:01234567", Ref(name="m", digest="sha256:01234567")),
        (f"sha256:{HEX}", Ref(digest=f"sha256:{HEX}")),
        ("sha256:01234567", Ref(digest="sha256:01234567")),
    ],
)
def test_each_form_is_read_and_written_back(text: str, ref: Ref) -> None:
    assert parse_ref(text) == ref
    assert str(ref) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":v1",
        "m:",
        "m:v0",
        "m:v01",
        "m:V2",
        "m:v99999999999999999999",
        "m:a:b",
        "m:v1@sha256:01234567",
        "m@v1",
        "m@",
        "@sha256:01234567",
        "sha256:",
        "sha256:0123456",
        f"sha256:{HEX}0",
        "sha256:ABCDEF01",
        "sha256:0123456g",
        "m@blake3:01234567",
        ".hidden",
        "-x",
        "a/b",
        "a\\b",
        "a b",
        "..",
        "a\n",
        "m:tag\n",
        "naïve",
        "m" * 129,
        "name.",
    ],
)
def test_what_is_no_ref_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(RefSyntaxError) as caught:
        parse_ref(text)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["sha256", "CON", "nul.txt", "aux"])
def test_reserved_words_are_no_names(name: str) -> None:
    with pytest.raises(RefSyntaxError, match="reserved"):
        validate_name(name)


def test_the_hint_proposes_a_name_that_is_one() -> None:
    with pytest.raises(RefSyntaxError, match="cannot be a name") as caught:
        validate_name("my model/1")
    assert "`1`" in caught.value.hint


@pytest.mark.parametrize("tag", ["v1", "V1", "v0", "v007"])
def test_a_tag_cannot_look_like_a_version(tag: str) -> None:
    with pytest.raises(RefSyntaxError, match="looks like a version"):
        validate_tag(tag)


@pytest.mark.parametrize("tag", ["v", "v1.0", "1", "prod", "v1-rc", "latest"])
def test_other_tags_are_fine(tag: str) -> None:
    assert parse_ref(f"m:{validate_tag(tag)}").tag == tag


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", "Meta-Llama-3-8B-Instruct"),
        ("org/model@5f0b02c75b57c5855da9ae460ce51323ea669d8a", "model"),
        ("/data/models/my run (2)/", "my-run-2"),
        ("/data/model.safetensors", "model"),
        ("./.hidden", "hidden"),
        ("models/sha256", "sha256-delta"),
        ("models/日本語", "delta"),
        ("", "delta"),
        ("x" * 300, "x" * 128),
    ],
)
def test_a_name_defaults_to_the_last_part(source: str, name: str) -> None:
    assert default_name(source) == name


@given(st.text(max_size=200))
def test_any_source_has_a_default_name(source: str) -> None:
    assume_no_nul = source.replace("\0", "")
    assert validate_name(default_name(assume_no_nul))


@given(st.text(alphabet=string.printable, max_size=90))
def test_what_is_read_is_written_back_unchanged(text: str) -> None:
    try:
        ref = parse_ref(text)
    except RefSyntaxError:
        return
    assert str(ref) == text
