from pathlib import Path

import pytest

from deltastore.cli.place import config_path, configured_index, locate_store
from deltastore.errors import DeltastoreError, StoreError, UsageError


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "config.toml"
    path.parent.mkdir()
    path.write_text(
        "[stores.team]\npath = '/srv/team'\n"
        "[stores.near]\npath = 'stores/near'\n"
        "[stores.remote]\ncatalog = 'postgresql://h/db'\nblobs = 's3://bucket'\n"
        "[stores.empty]\n",
    )
    monkeypatch.setenv("DELTASTORE_CONFIG", str(path))
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.parametrize("value", [None, ""])
def test_the_default_is_the_home(value: str | None, isolated_home: Path) -> None:
    assert locate_store(value) == isolated_home


@pytest.mark.parametrize("value", ["./team", "a/store", "/srv/x", "quickstart/store"])
def test_a_separator_makes_a_path(value: str) -> None:
    assert locate_store(value) == Path(value)


def test_a_configured_name() -> None:
    assert locate_store("team") == Path("/srv/team")


def test_a_relative_path_starts_at_the_config_file(config: Path) -> None:
    assert locate_store("near") == config.parent / "stores" / "near"


def test_an_existing_directory_wins_over_a_name(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    assert locate_store("team") == Path("team")


def test_an_unknown_word_is_a_path() -> None:
    assert locate_store("somewhere") == Path("somewhere")


def test_the_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert locate_store("~/store") == Path("/home/me/store")


def test_a_store_by_urls_is_refused_by_name() -> None:
    with pytest.raises(StoreError, match=r"'remote'.*catalog and blobs URLs"):
        locate_store("remote")


def test_an_entry_without_a_path() -> None:
    with pytest.raises(UsageError, match=r"'empty'.*no 'path'"):
        locate_store("empty")


@pytest.mark.parametrize("text", ["[stores", "stores = 3", "\x00"])
def test_a_malformed_config_names_the_file(config: Path, text: str) -> None:
    config.write_text(text)
    with pytest.raises(UsageError, match=r"config\.toml"):
        locate_store("team")


def test_a_config_that_was_named_must_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTASTORE_CONFIG", str(tmp_path / "no.toml"))
    with pytest.raises(DeltastoreError, match=r"no\.toml, which does not exist"):
        locate_store("team")


def test_no_config_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DELTASTORE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    assert config_path().name == "config.toml"
    assert locate_store("team") == Path("team")


def test_the_index_of_a_configured_store(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DELTASTORE_INDEX", raising=False)
    config.write_text(
        "[stores.a]\npath = '/srv/a'\nindex = 'local'\n"
        "[stores.b]\npath = '/srv/b'\nindex = 'near/indexes'\n"
        "[stores.c]\npath = '/srv/c'\n"
        "[stores.d]\npath = '/srv/d'\nindex = 3\n"
    )
    assert configured_index("a") == "local"
    assert configured_index("b") == str(config.parent / "near" / "indexes")
    assert configured_index("c") is configured_index("./a") is configured_index(None) is None
    with pytest.raises(UsageError, match=r"'d'.*got 3"):
        configured_index("d")
    monkeypatch.setenv("DELTASTORE_INDEX", "store")
    assert configured_index("a") is None
