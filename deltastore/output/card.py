"""The model card of an output: what it was made of, and metadata that the Hub understands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltastore.merging.method import MergeMethod
from deltastore.output.front_matter import front_matter
from deltastore.output.licences import REPO, combined, stated
from deltastore.output.markdown import plain
from deltastore.text import is_shown_as_it_is

NAME = "README.md"
_OWN_TAGS = ("deltastore", "task-arithmetic", "merge")
_MAX_MODELS = 100
_MAX_TAGS = 100
_MAX_LANGUAGES = 200
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8}){0,2}|code|multilingual")
_TAG = re.compile(r"[^\W_][\w .,+/&'()-]{0,63}")
"""Words. Tags with a colon (``base_model:…``, ``region:…``) are the Hub's own to make."""
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Source:
    """A model that went into the output.

    Attributes:
        label: What to call it.
        repo: Its Hub id, if it has one.
        metadata: That of its own card; empty if it has none.
    """

    label: str
    repo: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def card(
    base: Source,
    posts: Sequence[Source],
    deltas: Sequence[Mapping[str, Any]],
    method: MergeMethod,
    tool: str,
) -> bytes:
    """``README.md`` with the Hub's metadata.

    Args:
        base: The new base.
        posts: The post of each delta, in order.
        deltas: As in the provenance.
        method: How they were added.
        tool: Name and version of this tool.
    """
    sources = [base, *posts]
    lines = [f"# {plain(base.label)} + delta", ""]
    lines.append(
        "These weights are those of a base model plus the weight deltas of post-training "
        "([ParamΔ](https://arxiv.org/abs/2504.21023)); no training took place."
    )
    lines += ["", f"- base: {plain(base.label)}"]
    for delta in deltas:
        lines.append(
            f"- delta: {delta['ref']} ({plain(delta['base'])} → {plain(delta['post'])}), "
            f"scale {delta['scale']:g}, `{delta['digest']}`"
        )
    params = "".join(f", {name} {value}" for name, value in sorted(method.params.items()))
    lines.append(f"- method: {plain(method.name + params)}")
    lines += ["", *_licences(sources)]
    lines += [f"Made with {tool}; `deltastore.json` has the details.", ""]
    text = front_matter(metadata(sources)) + "\n" + "\n".join(lines)
    return text.encode("utf-8", "replace")


def metadata(sources: Sequence[Source]) -> dict[str, Any]:
    """The metadata of a model made of these: the new base first, then the posts in order.

    What a card says of results, data sets or access is true of its own model alone, and left out.
    """
    repos = dict.fromkeys(s.repo for s in sources if s.repo and REPO.fullmatch(s.repo))
    result: dict[str, Any] = {}
    if repos:
        result |= {"base_model": list(repos)[:_MAX_MODELS], "base_model_relation": "merge"}
    result |= combined([stated(source.metadata, source.repo) for source in sources])
    languages = _union((s.metadata.get("language") for s in sources), _LANGUAGE, _MAX_LANGUAGES)
    if languages:
        result["language"] = languages
    # What the model is for is what the last post-training made it for.
    for name in ("pipeline_tag", "library_name"):
        said = [s.metadata.get(name) for s in (*sources[:0:-1], sources[0])]
        known = [value for value in said if isinstance(value, str) and _SLUG.fullmatch(value)]
        if known:
            result[name] = known[0]
    own: list[Any] = [list(_OWN_TAGS)]
    result["tags"] = _union((*own, *(s.metadata.get("tags") for s in sources)), _TAG, _MAX_TAGS)
    return result


def _union(values: Iterable[Any], form: re.Pattern[str], limit: int) -> list[str]:
    """Strings of ``form`` out of strings and lists of them, each once, in order."""
    rows = (value if isinstance(value, list) else [value] for value in values)
    found = [item for row in rows for item in row if isinstance(item, str) and _is_word(item, form)]
    return list(dict.fromkeys(found))[:limit]


def _is_word(item: str, form: re.Pattern[str]) -> bool:
    return form.fullmatch(item) is not None and is_shown_as_it_is(item)


def _licences(sources: Sequence[Source]) -> list[str]:
    """What each model's card says of its licence, if any says anything."""
    licences = [stated(source.metadata, source.repo) for source in sources]
    if not any(licences):
        return []
    lines = ["Licences, all of which hold:", ""]
    for source, licence in zip(sources, licences, strict=True):
        said = "not stated" if licence is None else plain(licence.name)
        link = f" (<{licence.link}>)" if licence is not None and licence.link is not None else ""
        lines.append(f"- {plain(source.label)}: {said}{link}")
    return [*lines, ""]
