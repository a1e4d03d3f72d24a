"""Small files put together without any weights: what compose makes of three sides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from deltastore.artifact.sides import Sides
from deltastore.lineage.similarity import Lineage
from deltastore.merging.plan import MergePlan, PlannedBase, PlannedDelta
from deltastore.output.assemble import Composed, compose
from deltastore.tokenizer.matching import Vocabulary

Files = Mapping[str, str | bytes]
UNKNOWN = Lineage("unknown", False, None, None, 0, 0, 0)


def as_bytes(files: Files) -> dict[str, bytes]:
    return {name: x.encode() if isinstance(x, str) else x for name, x in files.items()}


def composed(
    place: Path,
    source: Files,
    post: Files,
    own: Files,
    *,
    words: Vocabulary | None = None,
    **options: Any,
) -> tuple[Path, Composed]:
    """The output's files, written to a directory, and what is said of them."""
    paths = written(place / "new", own)
    base: Any = SimpleNamespace(files=paths, tensors={})
    words = words or Vocabulary("not compared")
    made = compose(base, [Sides(as_bytes(source), as_bytes(post), words)], {}, **options)
    written(place / "out", made.files)
    return place / "out", made


def plan_of(base: str, *posts: tuple[str, str | None]) -> MergePlan:
    """A plan that adds deltas to these posts, by label and Hub id, to a base; without tensors."""
    deltas = tuple(
        PlannedDelta("x:v1", "sha256:0", 0.5, "o/B", post, repo, "", "", UNKNOWN)
        for post, repo in posts
    )
    return MergePlan(base=PlannedBase(base), deltas=deltas, tensors={})


def written(place: Path, files: Files) -> dict[str, Path]:
    place.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, data in as_bytes(files).items():
        paths[name] = place / name
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        paths[name].write_bytes(data)
    return paths


def read(path: Path) -> Any:
    return json.loads(path.read_text())
