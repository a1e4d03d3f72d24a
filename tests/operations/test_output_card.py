"""The output's model card: metadata of all that went in, and cards that mean no good."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from small_files_world import composed, plan_of

from deltastore.merging.method import LINEAR
from deltastore.output import assemble
from deltastore.output import front_matter as owner
from deltastore.output.card import Source, card
from deltastore.output.front_matter import FrontMatterError, read_front_matter
from deltastore.output.licences import stated
from deltastore.text import is_shown_as_it_is

DELTA = {"ref": "x:v1", "digest": "sha256:0", "scale": 0.5, "base": "o/B", "post": "o/P"}


def written(*sources: tuple[str | None, str]) -> ModelCard:
    """The card of models with these hub ids and metadata, as huggingface_hub reads it."""
    made = [
        Source(repo or "local", repo, read_front_matter(f"---\n{text}\n---\n".encode()))
        for repo, text in sources
    ]
    text = card(made[0], made[1:], [DELTA], LINEAR, "deltastore 1").decode()
    read = ModelCard(text)
    acceptable(read)
    return read


def acceptable(read: ModelCard) -> None:
    """What the Hub refuses, by its documentation of model card metadata."""
    data = read.data.to_dict()
    assert data.get("base_model_relation") in (None, "merge")
    assert ("base_model" in data) is ("base_model_relation" in data)
    for repo in data.get("base_model", []):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+|[\w.-]+", repo)
    for name in ("license", "license_name", "license_link", "pipeline_tag", "library_name"):
        assert isinstance(data.get(name, ""), str), name
    assert ("license_name" in data) is (data.get("license") == "other")
    assert re.fullmatch(r"https?://\S+", data.get("license_link", "https://x"))
    for name in ("tags", "language"):
        values = data.get(name, [])
        assert all(isinstance(value, str) for value in values)
        assert len(set(values)) == len(values)
    assert "deltastore" in data["tags"]


def test_base_models_are_all_that_have_hub_ids() -> None:
    read = written(("org/New", ""), ("meta/Post", ""), (None, ""), ("org/New", ""))
    assert read.data.base_model == ["org/New", "meta/Post"]
    assert read.data["base_model_relation"] == "merge"
    assert "base_model" not in written((None, ""), (None, "base_model: x/y")).data.to_dict()


LLAMA = "license: llama3\nlicense_link: https://l.example/3"


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["license: mit", "license: mit"], {"license": "mit"}),
        (["license: mit", "license: MIT", "license: mit"], {"license": "mit"}),
        (["", ""], {}),
        (
            ["license: llama3.1", "license: llama3"],
            {"license": "other", "license_name": "llama3.1 + llama3"},
        ),
        (
            [LLAMA, "license: llama3.1"],
            {
                "license": "other",
                "license_name": "llama3 + llama3.1",
                "license_link": "https://l.example/3",
            },
        ),
        (
            ["license: mit", ""],
            {"license": "other", "license_name": "mit + unknown"},
        ),
        (
            ["license: other\nlicense_name: qwen\nlicense_link: LICENSE"] * 2,
            {
                "license": "other",
                "license_name": "qwen",
                "license_link": "https://huggingface.co/o/0/blob/main/LICENSE",
            },
        ),
        (
            ["license: other", "license: mit"],
            {"license": "other", "license_name": "other + mit"},
        ),
        (
            ["license:\n- mit\n- apache-2.0", "license: mit"],
            {"license": "other", "license_name": "mit + apache-2.0 + mit"},
        ),
        (["license: {a: b}", "license: '[x](javascript:1)'"], {}),
        (
            ["license: mit\nlicense_link: javascript:x", "license: bsd\nlicense_link: ../../x"],
            {"license": "other", "license_name": "mit + bsd"},
        ),
    ],
    ids=str,
)
def test_licences(sources: list[str], expected: dict[str, str]) -> None:
    link = "license_link" in expected and "huggingface.co" in expected["license_link"]
    repos = ["o/0" if link else f"o/{i}" for i in range(len(sources))]
    data = written(*zip(repos, sources, strict=True)).data.to_dict()
    assert {name: data[name] for name in data if name.startswith("license")} == expected


def test_every_licence_is_named_with_its_model() -> None:
    text = written(("org/New", LLAMA), ("org/Post", "license: mit"), (None, "")).text
    assert "- org/New: llama3 (<https://l.example/3>)" in text
    assert "- org/Post: mit" in text
    assert "- local: not stated" in text


@pytest.mark.parametrize(
    "label",
    [
        "[x](javascript:alert(1))",
        "<img src=x onerror=alert(1)>",
        "`code` **b** ![i](https://evil.example/t.png)",
        "a\n# Heading\n- item",
        "https://evil.example www.evil.example a@evil.example @user #1 :skull:",
        "r\u202eltr\u2066\u200f\u3164\x1b[2J",
        "| a | b |",
        "&lt;script&gt; $x$ ~~s~~ _e_ __m__",
        "x" * 5000,
    ],
    ids=range(9),
)
def test_labels_are_text(label: str) -> None:
    delta = DELTA | {"base": label, "post": label}
    text = card(
        Source(label, None, {}), [Source(label, None, {"license": "mit"})], [delta], LINEAR, "t 1"
    )
    body = text.decode().split("---\n", 2)[2]
    html = MarkdownIt("commonmark", {"html": True}).enable(["strikethrough", "table"]).render(body)
    # Nor what becomes a link by itself.
    assert not re.search(r"(?<!arxiv)(?<!\\)(://|www\.|@)(?!arxiv)", body)
    for made in ("<img", "<strong>", "<em>", "<s>", "<script", "<h2", "<table", 'evil.example"'):
        assert made not in html
    assert html.count("<h1") == 1
    assert html.count("<a ") == 1  # of the paper
    assert html.count("<li>") == 5
    assert html.count("<code>") == 2
    assert all(is_shown_as_it_is(line) for line in text.decode().splitlines() if line)
    assert len(text) < 3000


@pytest.mark.parametrize(
    "link",
    [
        "javascript:alert(1)",
        "https://huggingface.co@evil.example/x",
        "https://e\u202e.example",
        "https://e.example/\u3164",
        "https://e.example/ x",
        "https://e.example/>x",
        "ftp://e.example",
        "data:text/html,x",
        "LICENSE\u202e",
        "../LICENSE",
    ],
    ids=ascii,
)
def test_links_of_licences_are_plain(link: str) -> None:
    said = {"license": "other", "license_name": "x", "license_link": link}
    for repo in ("o/r", "../../evil", "evil/x) [y](https://evil", None):
        found = stated(said, repo)
        assert found is not None
        assert found.link is None
    linked = stated(said | {"license_link": "LICENSE"}, "evil/x) [y](https://evil")
    assert linked is not None
    assert linked.link is None


def test_metadata_stays_what_is_read_again() -> None:
    names = ", ".join(f"licence-number-{i}-{'x' * 70}" for i in range(16))
    sources = [
        Source(str(i), f"o/{i}", {"license": names.replace("-n", f"-{i}").split(", ")})
        for i in range(200)
    ]
    text = card(sources[0], sources[1:], [DELTA], LINEAR, "t 1")
    assert read_front_matter(text)["license_name"] == "several"
    many = Source("x", None, {"license": ["mit"] * 17})
    assert stated(many.metadata, None) is None


def test_languages_tags_and_purpose() -> None:
    data = written(
        (
            "org/New",
            "language: [en, no]\ntags: [llama, 'base_model:x', on]\npipeline_tag: fill-mask\n"
            "library_name: other\nmodel-index: [{name: x}]\ndatasets: [d]\nextra_gated_prompt: no",
        ),
        (
            "org/Post",
            "language:\n- de\n- en\n- '[x]'\n- {a: b}\ntags: [chat, llama, 1.10]\n"
            "pipeline_tag: text-generation\nlibrary_name: transformers",
        ),
    ).data.to_dict()
    assert data["language"] == ["en", "no", "de"]
    assert data["tags"] == ["deltastore", "task-arithmetic", "merge", "llama", "on", "chat", "1.10"]
    assert data["pipeline_tag"] == "text-generation"
    assert data["library_name"] == "transformers"
    assert not {"model-index", "datasets", "extra_gated_prompt"} & data.keys()


def test_what_only_the_new_base_says() -> None:
    data = written(("o/N", "pipeline_tag: text-generation\nlanguage: en"), ("o/P", "")).data
    assert data.pipeline_tag == "text-generation"
    assert data.language == ["en"]


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "billion laughs": BOMB,
    "anchor": "license: &a mit",
    "merge": "base: &b {license: mit}\nx:\n  <<: *b",
    "deep": "a: " + "[" * 5000 + "]" * 5000,
    "deep blocks": "\n".join("  " * i + "a:" for i in range(200)),
    "open": "license: [mit",
    "list": "- a\n- b",
    "scalar": "mit",
    "control": "license: \x07",
    "large": "license: mit\nx: " + "y" * (1 << 17),
    "two documents": "license: mit\n...\nlicense: x",
    "second document": "license: mit\n--- {license: x}",
    "unhashable": "? [a]\n: b",
    "escape": 'license: "\\UFFFFFFFF"',
    "escape beyond Unicode": 'license: "\\U00110000"',
    "version": "%YAML " + "9" * 5000 + ".1\n---\na: b",
    "tab": "license:\n\tmit",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_front_matter_that_is_refused(tmp_path: Path, text: str) -> None:
    data = f"---\n{text}\n---\n# Card".encode()
    started = time.monotonic()
    with pytest.raises(FrontMatterError):
        read_front_matter(data)
    assert time.monotonic() - started < 10
    _, made = composed(tmp_path, {}, {"README.md": data}, {"README.md": "---\nlicense: mit\n---\n"})
    assert made.cards == [{"license": "mit"}, {}]
    (warning,) = made.ledger.warnings
    assert "README.md" in warning
    assert "post's card" in warning


@pytest.mark.parametrize(
    "data",
    [b"", b"# Card", b"---", b"---\n", b"---\n---\n", b"---\n\n---\n", b"a\n---\nb: c\n---\n"],
)
def test_cards_without_front_matter(data: bytes) -> None:
    assert read_front_matter(data) == {}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_front_matter_as_editors_write_it(end: str, mark: bytes) -> None:
    text = end.join(["---", "license: mit", "language:", "- no", "---", "# Card", ""])
    data = mark + text.encode()
    expected = ModelCard(text).data.to_dict()
    got = read_front_matter(data)
    assert got["license"] == expected["license"] == "mit"
    assert got["language"] == ["no"]


def test_code_is_not_run(tmp_path: Path) -> None:
    text = f"---\nx: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n---\n"
    assert read_front_matter(text.encode())["x"] == [f"{tmp_path}/made"]
    assert not (tmp_path / "made").exists()


def test_a_large_front_matter_is_read_in_time() -> None:
    rows = "".join(f"- name: {i}\n" for i in range(owner.MAX_BYTES // 20))
    started = time.monotonic()
    assert read_front_matter(f"---\nx:\n{rows}---\n".encode())["x"]
    assert time.monotonic() - started < 20


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet="{}[]:,-?*&!|>'\"\\%@`#~=<.\n \tabUx0F9\ud800\u2028"))
def test_any_front_matter_is_read_or_refused(text: str) -> None:
    data = f"---\n{text}\n---\n".encode("utf-8", "surrogatepass")
    with contextlib.suppress(FrontMatterError):
        found = read_front_matter(data)
        assert ModelCard(card(Source("a", None, found), [], [], LINEAR, "t").decode()).data.tags


VALUES: Any = st.recursive(
    st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x),
    max_leaves=4,
)
KEYS = [
    "license",
    "license_name",
    "license_link",
    "language",
    "tags",
    "pipeline_tag",
    "library_name",
]


@settings(max_examples=50, deadline=None)
@given(
    cards=st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES), min_size=2, max_size=3),
    label=st.text(max_size=8),
)
def test_whatever_cards_say_the_hub_can_read_the_result(cards: Any, label: str) -> None:
    plan = plan_of(label, *((label, "org/x") for _ in cards[1:]))
    text = assemble.card(plan, cards).decode()
    acceptable(ModelCard(text))
