"""A hub that lies, floods, dawdles, or sends us elsewhere: refused soon, in little memory."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub_hostile as hostile
import pytest
from hub_server import Behaviour, HubServer

from deltastore.checkpoint import open_checkpoint
from deltastore.checkpoint.hub import Unwatched, limits
from deltastore.checkpoint.hub.addresses import MisbehavedError, redirected
from deltastore.checkpoint.hub.fetching import fetch
from deltastore.errors import HubError

SHARD = "model-00001-of-00002.safetensors"
SMALL = "generation_config.json"
TOKEN = "hf_secret"

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(autouse=True)
def impatient(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less patience than users have, and credentials that must not leave the hub."""
    monkeypatch.setattr(limits, "PATIENCE_S", 1.5)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 1)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def read_all(source: str = "org/base") -> None:
    with open_checkpoint(source) as checkpoint:
        for name in checkpoint.tensors:
            checkpoint.read_into(name, 0, bytearray(2))


def files_in(place: Path) -> dict[str, int]:
    """The files below a directory, without the cache."""
    return {
        str(path): path.lstat().st_size
        for path in place.rglob("*")
        if not path.is_dir() and place / "hf" not in path.parents
    }


def refused(
    hub: HubServer, tmp_path: Path, said: str, within_s: float = 6.0, source: str = "org/base"
) -> HubError:
    """The refusal, which must come soon, cost little, and leave nothing outside the cache."""
    before, peak = files_in(tmp_path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.monotonic()
    with pytest.raises(HubError) as caught:
        read_all(source)
    took = time.monotonic() - begun
    assert said in caught.value.message
    assert caught.value.exit_code == 71
    assert caught.value.hint
    assert took < within_s
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100 << 10
    assert files_in(tmp_path) == before
    cached = [path for path in (tmp_path / "hf").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in cached) < 20 << 20
    assert not [path for path in cached if path.name.endswith(".incomplete")]
    assert {r.token for r in hub.requests if r.kind == "cdn"} <= {None}
    return caught.value


# --- the list of files


def entry(**changes: Any) -> Change:
    """The first shard's entry, with other fields."""

    def change(document: dict[str, Any]) -> None:
        (found,) = [e for e in document["siblings"] if e["rfilename"] == SHARD]
        found |= changes

    return change


def more(*entries: Any) -> Change:
    return lambda document: document["siblings"].extend(entries)


def whole(**fields: Any) -> Change:
    return lambda document: document.update(fields)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (entry(size="many"), "the size 'many'"),
        (entry(size=-1), "the size -1"),
        (entry(size=1.5), "the size 1.5"),
        (entry(size=True), "the size True"),
        (entry(size=1 << 70), "the size 118"),
        (entry(size=10**400), "the size 1"),
        (entry(size=None, lfs=None), "how large"),
        (entry(size=5), "two sizes"),
        (entry(rfilename=5), "a file 5"),
        (entry(rfilename=None), "a file None"),
        (entry(rfilename=""), "a file ''"),
        (entry(rfilename="x" * 300), "a file 'xxx"),
        (entry(rfilename="a/" * 600 + "b"), "a file 'a/a"),
        (entry(lfs=[1]), "the LFS file [1]"),
        (entry(lfs="x"), "the LFS file 'x'"),
        (entry(lfs={"sha256": 5}), "the LFS file"),
        (entry(lfs={"sha256": "../../x"}), "the LFS file"),
        (entry(lfs={"sha256": "a" * 64, "size": "x"}), "the size 'x'"),
        (entry(blobId="../../../x"), "the blob '../../../x'"),
        (entry(blobId=5), "the blob 5"),
        (more({"rfilename": "..", "size": 1}), "a file '..'"),
        (more({"rfilename": "../../LICENSE", "size": 1}), "a file '../../LICENSE'"),
        (more({"rfilename": "a/../LICENSE", "size": 1}), "a file 'a/../LICENSE'"),
        (more({"rfilename": "/etc/LICENSE", "size": 1}), "a file '/etc/LICENSE'"),
        (more({"rfilename": "LICENSE\0", "size": 1}), "a file 'LICENSE"),
        (more({"rfilename": "LICENSE\ud800", "size": 1}), "a file 'LICENSE"),
        (more({"rfilename": SHARD, "size": 1}), "twice"),
        (more(5), "lists 5"),
        (more(None), "lists None"),
        (whole(siblings=5), "lists 5"),
        (whole(siblings={"a": 1}), "lists {'a': 1}"),
        (whole(siblings=[{"rfilename": "a"}] * 50_001), "at most 50000 files"),
        (whole(sha=5), "the commit 5"),
        (whole(sha=None), "the commit None"),
        (whole(sha="../../../x"), "the commit '../../../x'"),
        (whole(sha="A" * 40), "the commit 'AAA"),
        (more({"rfilename": "README.md", "size": 2 << 40}), "'README.md' of 2199023255552 bytes"),
        (
            more(*({"rfilename": f"post-{i}-LICENSE", "size": 1} for i in range(2, 503))),
            "at most 500",
        ),
        (
            more(*({"rfilename": f"chat_templates/{i}.jinja", "size": 60 << 20} for i in range(5))),
            "together",
        ),
    ],
)
def test_lists_that_lie(models: HubServer, tmp_path: Path, change: Change, said: str) -> None:
    document = hostile.listed(models)
    change(document)
    models.behaviours["api"] = hostile.says(document)
    refused(models, tmp_path, said)
    assert models.count("get") == 0 or said == "how large"


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (hostile.says(b"["), "no JSON"),
        (hostile.says(b"[" * 100_000), "no JSON"),
        (hostile.says(b"\xff" * 10), "no JSON"),
        (hostile.says(b"9" * 5000), "no JSON"),
        (hostile.says([]), "of type list"),
        (hostile.says(b"[" + b"[]," * 5_000_000 + b"[]]"), "states '15000004' bytes"),
        (hostile.endless(), "more than 8388608 bytes"),
        (hostile.endless(chunked=True), "more than 8388608 bytes"),
        (hostile.inflating(1 << 27), "encoded as 'gzip'"),
        (hostile.with_headers({"Content-Encoding": "br"}), "encoded as 'br'"),
        (hostile.with_headers({"Content-Encoding": "gzip, gzip"}), "encoded as 'gzip, gzip'"),
        (hostile.with_headers({"Content-Length": "9" * 19}), "states '999"),
        (hostile.with_headers({}, status=204, body=b""), "status 204"),
        (hostile.with_headers({"X": "x" * 2_000_000}), "cannot be reached"),
        (hostile.with_headers({f"X-{i}": "x" for i in range(100_000)}), "cannot be reached"),
        (hostile.with_headers({"Retry-After": "60"}, status=429), "it asks to wait 60 s"),
        (hostile.with_headers({"Retry-After": "9" * 999}, status=429), "too many requests"),
        (hostile.with_headers({"Retry-After": "\xb2"}, status=429), "too many requests"),
        (hostile.silent, "cannot be reached"),
        (hostile.dripping(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000), "too slow"),
        (hostile.dripping_body(1000), "too slow"),
        (hostile.dripping_chunk_size, "too slow"),
        (hostile.informing, "too slow"),
        (hostile.redirecting(lambda path: path), "redirects more than 5 times"),
        (hostile.redirecting("file:///etc/passwd"), "expected http or https"),
        (hostile.redirecting("http://[::1"), "redirects to"),
        (hostile.redirecting("http://169.254.169.254/latest/meta-data"), "own link"),
    ],
    ids=range(27),
)
def test_answers_instead_of_a_list(
    models: HubServer, tmp_path: Path, behaviour: Behaviour, said: str
) -> None:
    models.behaviours["api"] = behaviour
    refused(models, tmp_path, said, within_s=12.0)


def test_another_commit_than_was_asked_for(models: HubServer, tmp_path: Path) -> None:
    models.behaviours["api"] = hostile.says(hostile.listed(models))
    refused(models, tmp_path, "names the commit", source=f"org/base@{'1' * 40}")


def test_waits_are_told_and_together_bounded(models: HubServer) -> None:
    told: list[str] = []

    class Watcher(Unwatched):
        def warn(self, message: str) -> None:
            told.append(message)

    limits_s = 5.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "WAITS_S", limits_s)
        models.behaviours["api"] = hostile.with_headers({"Retry-After": "2"}, status=429)
        begun = time.monotonic()
        with pytest.raises(HubError, match="asks to wait 2 s"):
            open_checkpoint("org/base", downloads=Watcher())
    assert 4.0 <= time.monotonic() - begun < limits_s + 2
    assert told == ["The hub asks to wait 2 s before it is asked again."] * 2
    assert models.count("api") == 3


# --- files


def etag(value: str) -> Callable[[HubServer], Behaviour]:
    return lambda hub: hostile.with_odd_headers({"ETag": value}, hub, SMALL)


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"../../../../../escaped"'},
        {"ETag": '"/tmp/escaped"', "X-Linked-ETag": '"../../../escaped"', "X-Linked-Size": "-1"},
        {"ETag": "x" * 50_000},
        {"Content-Disposition": 'attachment; filename="../../../escaped";'},
        {"Set-Cookie": "a=b; Domain=.com", "Link": "<http://127.0.0.1:9/>; rel=xet-auth"},
    ],
)
def test_headers_of_which_no_path_is_made(
    models: HubServer, cache: Path, tmp_path: Path, headers: dict[str, str]
) -> None:
    """Blobs are called by what they are, whatever the hub says of them."""
    before = files_in(tmp_path)
    models.behaviours["get"] = hostile.with_odd_headers(headers, models, SMALL)
    read_all()
    assert files_in(tmp_path) == before
    commit = models.repositories["org/base"].refs["main"]
    storage = cache / "models--org--base"
    names = {path.name for path in (storage / "blobs").iterdir()}
    files = models.repositories["org/base"].commits[commit]
    assert names == {file.etag for file in files.values()}
    link = (storage / "snapshots" / commit / SMALL).readlink()
    assert link == Path("../../blobs") / files[SMALL].git_oid


def test_xet_addresses_are_not_asked(
    models: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the library would fetch a token for another storage, with the user's own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    headers = {
        "X-Xet-Hash": "ab" * 32,
        "X-Xet-Refresh-Route": f"{models.elsewhere}/xet",
        "Link": f'<{models.elsewhere}/xet>; rel="xet-auth"',
    }
    models.behaviours["get"] = hostile.with_odd_headers(headers, models, SMALL)
    read_all()
    assert models.count("cdn", "xet") == 0
    assert {r.token for r in models.requests if r.kind == "cdn"} == {None}
    assert {r.token for r in models.requests if r.kind != "cdn"} == {TOKEN}


@pytest.mark.parametrize(
    ("kind", "behaviour", "said"),
    [
        ("get", hostile.endless(), "sends more than"),
        ("get", hostile.endless(chunked=True), "sends more than"),
        ("get", hostile.inflating(1 << 27), "encoded as 'gzip'"),
        ("get", hostile.with_headers({"Content-Length": "1000000000"}), "states '1000000000'"),
        ("get", hostile.with_headers({}, body=b"{"), "states '1' bytes"),
        ("get", hostile.with_headers({"X-Repo-Commit": "../../x"}), "for the commit '../../x'"),
        ("get", hostile.with_headers({"X-Repo-Commit": "1" * 40}), "for the commit '111"),
        ("get", hostile.with_headers({}, status=206), "status 206"),
        ("get", hostile.with_headers({}, status=203), "status 203"),
        ("get", hostile.with_headers({"X": "x" * 2_000_000}), "cannot be reached"),
        ("get", hostile.with_headers({"X-Error-Code": "x" * 90_000}, status=418), "it (418)"),
        ("get", hostile.silent, "slow"),
        ("get", hostile.dripping(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000), "too slow"),
        ("get", hostile.dripping_body(24), "too slow"),
        ("get", hostile.dripping_chunk_size, "too slow"),
        ("get", hostile.informing, "too slow"),
        ("get", hostile.redirecting(lambda path: path), "redirects more than 5 times"),
        ("get", hostile.redirecting("file:///etc/passwd"), "expected http or https"),
        ("get", hostile.redirecting("gopher://x/"), "expected http or https"),
        ("get", hostile.redirecting("//u:p@127.0.0.1:9/"), "without a user"),
        ("get", hostile.redirecting("http://127.0.0.1:9\\@x/"), "without a user"),
        ("get", hostile.redirecting("http://[::1"), "redirects to"),
        ("get", hostile.redirecting("http://x:99999/"), "redirects to"),
        ("get", hostile.redirecting("/" + "x" * 9000), "redirects to"),
        ("get", hostile.redirecting("http://169.254.169.254/"), "own link"),
        ("get", hostile.redirecting("http://[::ffff:169.254.169.254]/"), "own link"),
    ],
    ids=range(26),
)
def test_small_files(
    models: HubServer, tmp_path: Path, kind: str, behaviour: Behaviour, said: str
) -> None:
    models.behaviours[kind] = hostile.only(SMALL, behaviour)
    refused(models, tmp_path, said, within_s=12.0)


def test_a_redirect_takes_no_token_elsewhere(models: HubServer, tmp_path: Path) -> None:
    def elsewhere(path: str) -> str:
        return f"{models.elsewhere}{path.replace('/resolve', '')}?link=0"

    models.behaviours["get"] = hostile.redirecting(elsewhere)
    read_all()
    assert models.count("cdn", SMALL) == 1
    assert {r.token for r in models.requests if r.kind == "cdn"} == {None}


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (hostile.empty_part, "sends 'bytes 0-"),
        (hostile.lying_part("bytes 0-7/8", b"x" * 8), "sends 'bytes 0-7/8'"),
        (hostile.lying_part("bytes 5-12/*", b"x" * 8), "sends 'bytes 5-12/*'"),
        (hostile.with_headers({}, status=206), "sends None"),
        (hostile.endless(), "with status 200"),
        (hostile.with_headers({"Content-Encoding": "gzip"}, status=206), "encoded as 'gzip'"),
        (hostile.silent, "too slow"),
        (hostile.dripping(b"HTTP/1.1 206 OK\r\nX: " + b"x" * 1000), "too slow"),
        (hostile.redirecting(lambda path: path), "redirects more than 5 times"),
    ],
    ids=range(9),
)
def test_headers_of_shards(
    models: HubServer, tmp_path: Path, behaviour: Behaviour, said: str
) -> None:
    models.behaviours["cdn"] = behaviour
    refused(models, tmp_path, said, within_s=12.0)


def test_a_part_of_the_right_name_without_bytes(models: HubServer, tmp_path: Path) -> None:
    """An answer that is complete and brings nothing is no progress."""
    size = hostile.listed(models)["siblings"]
    sizes = {e["rfilename"]: e["size"] for e in size}

    def nothing(handler: Any, path: str) -> bool:
        asked = handler.headers.get("Range").removeprefix("bytes=")
        total = sizes[path.rpartition("/")[2]]
        named = {"Content-Range": f"bytes {asked}/{total}", "Content-Length": "0"}
        handler.head(206, named)
        return True

    models.behaviours["cdn"] = nothing
    refused(models, tmp_path, "0 of 23 bytes came")


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (hostile.endless(), "sends more than"),
        (hostile.with_headers({}, body=b"x" * 100), "states '100' bytes"),
        (hostile.dripping_body(1 << 20), "states '1048576' bytes"),
        (hostile.silent, "too slow"),
        (hostile.dripping(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000), "too slow"),
        (hostile.dripping_chunk_size, "too slow"),
    ],
    ids=range(6),
)
def test_downloads_of_shards(
    models: HubServer, tmp_path: Path, behaviour: Behaviour, said: str
) -> None:
    # Headers are read as they should be.
    models.behaviours["cdn"] = lambda handler, path: (
        not handler.headers.get("Range") and (behaviour(handler, path))
    )
    refused(models, tmp_path, said, within_s=12.0)


def test_a_server_without_parts_starts_again(models: HubServer, sources: Path) -> None:
    """A download that was cut goes on from its beginning where there are no parts."""
    with open_checkpoint("org/base") as checkpoint:
        done: list[int] = []

        class Watcher(Unwatched):
            def advance_download(self, done_bytes: int) -> None:
                done.append(done_bytes)

        models.cut("cdn", after=1 << 19)
        models.ignore_ranges = True
        snapshot = checkpoint._open[0]._snapshot  # type: ignore[union-attr]
        path = fetch(snapshot, SHARD, Watcher())
    assert path.read_bytes() == (sources / "base" / SHARD).read_bytes()
    assert sum(done) == path.stat().st_size


def test_https_is_not_left() -> None:
    assert redirected("https://h/a", "https://cdn/b?c") == "https://cdn/b?c"
    assert redirected("https://h/a/b", "../c") == "https://h/c"
    assert redirected("http://h/a", "https://cdn/b#d") == "https://cdn/b"
    with pytest.raises(MisbehavedError, match="from https to http"):
        redirected("https://h/a", "http://h/a")
    for nowhere in (None, "", "http://", "http:///x", "http://h/\n", "data:,x"):
        with pytest.raises(MisbehavedError):
            redirected("https://h/a", nowhere)


# --- the cache, where others may write


def fetched(models: HubServer, cache: Path) -> tuple[Path, Path]:
    """The storage of org/base, and its commit's folder, with everything in it."""
    read_all()
    storage = cache / "models--org--base"
    return storage, storage / "snapshots" / models.repositories["org/base"].refs["main"]


@pytest.mark.parametrize("offline", [False, True])
def test_a_planted_link_to_a_file_of_the_user(
    models: HubServer,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    offline: bool,
) -> None:
    _, folder = fetched(models, cache)
    (tmp_path / "secret").write_text("{}")
    (folder / SMALL).unlink()
    (folder / SMALL).symlink_to(tmp_path / "secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(HubError, match="leads out of the hub's local cache") as caught:
        read_all()
    assert f"rm {folder / SMALL}" in caught.value.hint


@pytest.mark.parametrize("text", ["../../..", "/etc", "", "x" * 40, "a" * 5000, "\0"])
def test_a_ref_that_names_no_commit(
    models: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    storage, _ = fetched(models, cache)
    (storage / "refs" / "main").write_text(text)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="does not name a commit"):
        read_all()


def test_a_ref_that_is_a_pipe_or_a_link(
    models: HubServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, folder = fetched(models, cache)
    (tmp_path / "elsewhere").write_text(folder.name)
    ref = storage / "refs" / "main"
    for plant in (lambda: os.mkfifo(ref), lambda: ref.symlink_to(tmp_path / "elsewhere")):
        ref.unlink()
        plant()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(HubError, match="local cache does not hold it"):
            read_all()
    # What is written there replaces the link, and not what it leads to.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (folder / SMALL).unlink()
    (storage / "refs" / "main").unlink()
    (storage / "refs" / "main").symlink_to(tmp_path / "elsewhere")
    models.publish("org/base", tmp_path / "none", "other")
    read_all()
    assert not ref.is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to have another user's links")
@pytest.mark.parametrize("place", ["", "blobs", "snapshots", "refs"])
def test_directories_of_the_cache_that_another_user_linked_away(
    models: HubServer, cache: Path, tmp_path: Path, place: str
) -> None:
    """Nothing is written where a link of somebody else leads."""
    storage = cache / "models--org--base"
    victim = tmp_path / "victim"
    victim.mkdir()
    link = storage / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim)
    os.lchown(link, 4001, 4001)
    if place == "refs":
        read_all()  # only not noted
    else:
        with pytest.raises(HubError, match="local cache cannot be used"):
            read_all()
    assert list(victim.iterdir()) == []


def test_directories_of_the_cache_that_the_user_linked(
    models: HubServer, cache: Path, tmp_path: Path
) -> None:
    """A large repository may be on another disk."""
    (tmp_path / "disk").mkdir()
    cache.mkdir(parents=True)
    (cache / "models--org--base").symlink_to(tmp_path / "disk")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "disk" / "blobs").symlink_to(tmp_path / "blobs")
    read_all()
    read_all()
    assert len(list((tmp_path / "blobs").iterdir())) == 6


def test_a_lock_that_is_held_and_brings_nothing_is_not_waited_for(
    models: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr("deltastore.checkpoint.hub.cache._LOCK_PATIENCE_S", 0.5)
    commit = models.repositories["org/base"].refs["main"]
    blob = models.repositories["org/base"].commits[commit][SHARD].sha256
    place = cache / ".locks" / "models--org--base"
    place.mkdir(parents=True)
    with (place / f"{blob}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        read_all()
