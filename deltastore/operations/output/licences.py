"""Licences of an output: those of everything that went into it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltastore.operations.output.ledger import Ledger

_FILES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+()/-]{0,95}")
_LINK = re.compile(r"https?://[^\s<>\"'()\[\]`]{1,500}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_OTHER = "other"
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


def is_legal(name: str) -> bool:
    """Whether a small file is a licence or what goes with one."""
    return name.upper().startswith(_FILES)


def add_legal(files: dict[str, bytes], name: str, data: bytes, ledger: Ledger) -> None:
    """Licences of base and posts all hold, so all are there, each once."""
    names = itertools.chain(
        [name, f"post-{name}"], (f"post-{i}-{name}" for i in itertools.count(2))
    )
    free = next(n for n in names if files.get(n, data) == data)
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
    if not known or len(known) != len(names):
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
    metadata = {"license": _OTHER, "license_name": " + ".join(found)}
    if len(links) == 1:
        metadata["license_link"] = links.pop()
    return metadata


def _link(value: Any, repo: str | None) -> str | None:
    """A licence's text as a URL: as given, or as a file of the model's repository."""
    if not isinstance(value, str):
        return None
    if _LINK.fullmatch(value):
        return value
    if repo is not None and _FILE.fullmatch(value):
        return f"https://huggingface.co/{repo}/blob/main/{value}"
    return None
