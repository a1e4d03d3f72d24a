"""Opening a snapshot: its small files are fetched, its shards only looked at."""

from __future__ import annotations

from pathlib import Path

from deltastore.checkpoint.beside import Left, left_behind, travelling
from deltastore.checkpoint.hub.cache import check_links
from deltastore.checkpoint.hub.downloads import Downloads, Unwatched
from deltastore.checkpoint.hub.fetching import fetch, fetch_small, require_space
from deltastore.checkpoint.hub.shard import HubShard
from deltastore.checkpoint.hub.snapshot import Snapshot
from deltastore.checkpoint.index import listed
from deltastore.checkpoint.layout import Layout, find_layout, suffixes_of
from deltastore.checkpoint.small_files import MODULES, read_modules
from deltastore.errors import CheckpointCorruptError, HubError, NoWeightsError
from deltastore.system.threads import Workers

_HEADERS_AT_ONCE = 8


def fetch_layout(
    snapshot: Snapshot, downloads: Downloads | None
) -> tuple[Layout, dict[str, Path], Left]:
    """Which files are the checkpoint, the small files, which are fetched for it, and what is left.

    Raises:
        HubError: A file cannot be had.
        NoWeightsError: There are no weights.
        CheckpointCorruptError: Files are missing, or contradict each other or their index.
    """
    names = snapshot.top_level()
    watcher = downloads or Unwatched()
    suffixes = tuple(f"{suffix}.index.json" for suffix in suffixes_of(names))
    indices = [name for name in names if name.endswith(suffixes)]
    sizes = {name: file.size for name, file in (snapshot.files or {}).items()}
    small = travelling(sizes, None)
    fetched = fetch_small(snapshot, [*indices, *small], watcher)
    if MODULES in fetched:
        # Only now it is known which folders belong to the model.
        small = travelling(sizes, read_modules(fetched))
        fetched |= fetch_small(snapshot, set(small) - fetched.keys(), watcher)
    try:
        layout = find_layout(snapshot.folder, names=names)
    except NoWeightsError as error:
        raise NoWeightsError(
            f"{snapshot.label} holds no weights that deltastore reads; found {_found(names)}.",
            hint="Give the id of a repository with .safetensors (or pytorch_model*.bin) files "
            "at its top.",
            repo=snapshot.repo,
            revision=snapshot.commit,
        ) from error
    left = left_behind(sizes, small, layout.filenames)
    return layout, {name: fetched[name] for name in small}, left


def check_cached(snapshot: Snapshot) -> Layout:
    """The layout of what the local cache has, where the hub was not asked.

    Raises:
        HubError: It has the commit only in part.
        CheckpointError: The files contradict each other, or cannot be read.
    """
    check_links(snapshot.repo, snapshot.folder)
    try:
        return find_layout(snapshot.folder)
    except (NoWeightsError, CheckpointCorruptError) as error:
        if isinstance(error, CheckpointCorruptError) and "missing" not in error.facts:
            raise
        why = f"the hub cannot be reached ({snapshot.unreachable}), and " * bool(
            snapshot.unreachable
        )
        raise HubError(
            f"{snapshot.label} cannot be read whole: {why}the local cache holds only a part of it.",
            hint=f"Fetch it while online: `{snapshot.command}`.",
            repo=snapshot.repo,
            revision=snapshot.commit,
        ) from error


def look_at_shards(
    snapshot: Snapshot, layout: Layout, downloads: Downloads | None
) -> dict[str, HubShard]:
    """The shards that are not in the local cache, by name, their headers read.

    Raises:
        HubError: A header cannot be had, or the checkpoint cannot be read in parts and nothing
            may be downloaded.
        CheckpointCorruptError: A header breaks the format.
    """
    missing = [name for name in layout.filenames if snapshot.cached(name) is None]
    if not layout.is_safetensors:
        if missing and downloads is None:
            raise HubError(
                f"{snapshot.label} has its weights in {listed(missing)}: such files cannot be read "
                "in part, and a dry run downloads nothing.",
                hint=f"Fetch it first: `{snapshot.command}`.",
                repo=snapshot.repo,
                revision=snapshot.commit,
            )
        require_space(snapshot, missing)
        for name in missing:
            fetch(snapshot, name, downloads or Unwatched())
        return {}
    if not missing:
        return {}
    numbers = {name: number for number, name in enumerate(layout.filenames)}
    files = snapshot.files or {}

    def look(name: str) -> HubShard:
        return HubShard(
            snapshot,
            files[name],
            numbers[name],
            before=lambda: require_space(snapshot, layout.filenames),
            downloads=downloads,
        )

    with Workers(_HEADERS_AT_ONCE, name="headers") as pool:
        return dict(zip(missing, pool.map(look, missing), strict=True))


def _found(names: list[str]) -> str:
    return listed(names) if names else "no files"
