"""Licences of an output: those of everything that went into it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltastore.checkpoint.small_files import legal_name
from deltastore.output.ledger import Ledger

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+()/-]{0,95}")
_LINK = re.compile(
    r"https?://[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?(/[A-Za-z0-9._~/?#!$&*+,;=%@:-]{0,500})?"
)
"""Without a user's name before the host, which would look like another host."""

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
"""A Hub id."""

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_OTHER = "other"
_SEVERAL = "several"
_MAX_OF_A_CARD = 16
_MAX_NAME_CHARS = 1000
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Licence:
    """A licence as a model card states it.

    Attributes:
        name: The Hub's identifier; where that is ``other``, the licence's own name.
        other: The Hub has no identifier for it.
        link: Where its text is, as a URL; None if that was not said.
    """

    name: str
    other: bool
    link: str | None


def add_legal(files: dict[str, bytes], name: str, data: bytes, ledger: Ledger) -> None:
    """Licences of base and posts all hold, so all are there, each once."""
    own = legal_name(name)
    names = itertools.chain([name, f"post-{own}"], (f"post-{i}-{own}" for i in itertools.count(2)))
    # Some file systems take License for LICENSE, and one would overwrite the other.
    taken = {other.lower(): other for other in files}
    free = next(n for n in names if files.get(taken.get(n.lower(), n), data) == data)
    free = taken.get(free.lower(), free)
    if free not in files:
        ledger.origins[free] = "post"
    files[free] = data


def stated(metadata: Mapping[str, Any], repo: str | None) -> Licence | None:
    """The licence that a card states; None where it states none that could be one.

    Args:
        metadata: The card's.
        repo: The Hub id of the model, for links to files beside the card.
    """
    value = metadata.get("license")
    names = value if isinstance(value, list) else [value]
    known = [name for name in names if isinstance(name, str) and _ID.fullmatch(name)]
    if not known or len(known) != len(names) or len(known) > _MAX_OF_A_CARD:
        return None
    name, other = " + ".join(known).lower(), len(known) > 1
    if name == _OTHER:
        own = metadata.get("license_name")
        other = True
        name = own if isinstance(own, str) and _ID.fullmatch(own) else name
    return Licence(name, other, _link(metadata.get("license_link"), repo))


def combined(licences: Sequence[Licence | None]) -> dict[str, str]:
    """The Hub's metadata for a model that all of these bind.

    One licence if all are the same; else ``other``, named after all of them, side by side; where
    some model states none, that is ``unknown``. Nothing if none states any.
    """
    if not any(licences):
        return {}
    found = list(dict.fromkeys(x.name if x is not None else _UNKNOWN for x in licences))
    links = {x.link for x in licences if x is not None and x.link is not None}
    first = next(x for x in licences if x is not None)
    if len(found) == 1 and not first.other:
        return {"license": first.name}
    name = " + ".join(found)
    # The card has them one by one besides.
    metadata = {
        "license": _OTHER,
        "license_name": name if len(name) <= _MAX_NAME_CHARS else _SEVERAL,
    }
    if len(links) == 1:
        metadata["license_link"] = links.pop()
    return metadata


def _link(value: Any, repo: str | None) -> str | None:
    """A licence's text as a URL: as given, or as a file of the model's repository."""
    if not isinstance(value, str):
        return None
    if _LINK.fullmatch(value):
        return value
    if repo is not None and REPO.fullmatch(repo) and _FILE.fullmatch(value):
        return f"https://huggingface.co/{repo}/blob/main/{value}"
    return None
