"""Environments as containers, services and jobs have them: no home, no directory, small limits."""

from __future__ import annotations

import json
import os
import pwd
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import deltastore
from deltastore import places
from deltastore.cli.main import main
from deltastore.errors import LimitError, NoSpaceError, UsageError
from deltastore.limits import as_limit

NOBODY = "~no-such-user-here/x"


def deltastore_in(
    directory: Path, *argv: str, shell: str = "", **variables: str | None
) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own; ``shell`` is what a shell does before."""
    environment = {name: value for name, value in (os.environ | variables).items() if value}
    return subprocess.run(
        ["sh", "-c", f'{shell}\nexec "$@"', "sh", sys.executable, "-m", "deltastore", *argv],
        cwd=directory,
        env=environment | {"PYTHONPATH": str(Path(deltastore.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of a command line that ends as a usage error."""
    capsys.readouterr()
    assert main(["--json", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    error = json.loads(err.splitlines()[-1])["error"]
    assert error["hint"]
    return str(error["message"])


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id without a passwd entry, and no HOME."""

    def unknown(_: object) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "DELTASTORE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "variable", ["DELTASTORE_STORE", "DELTASTORE_HOME", "DELTASTORE_INDEX", "DELTASTORE_CONFIG"]
)
def test_a_variable_with_an_unknown_user_is_named(
    store: Path,
    variable: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if variable == "DELTASTORE_HOME":
        monkeypatch.delenv("DELTASTORE_STORE")
    if variable == "DELTASTORE_CONFIG":
        monkeypatch.setenv("DELTASTORE_STORE", "word")
    monkeypatch.setenv(variable, NOBODY)
    message = refused(capsys, "list")
    assert message.startswith(variable)
    assert "'no-such-user-here'" in message


def test_an_option_with_an_unknown_user_is_named(
    store: Path,
    models: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    apply = ("apply", "instruct", "--base", models.new_base, "--out", NOBODY)
    assert refused(capsys, "--store", NOBODY, "list").startswith("--store")
    assert refused(capsys, *apply).startswith("--out")
    assert refused(capsys, *apply, "--dry-run").startswith("--out")
    assert refused(capsys, "export", "instruct", NOBODY)
    assert not list(tmp_path.glob("~*"))


@pytest.mark.usefixtures("homeless")
def test_without_a_home_what_needs_one_is_refused_by_its_name(
    tmp_path: Path,
    models: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    pair = ("--base", models.base, "--post", models.post)
    for argv in (["list"], ["doctor"], ["extract", *pair, "--name", "m"]):
        assert "HOME is not set" in refused(capsys, *argv)
    assert "HOME is not set" in refused(capsys, "--store", "~/s", "list")
    named = ["--store", str(tmp_path / "s")]
    assert main([*named, "extract", *pair, "--name", "m", "-q"]) == 0
    assert main([*named, "list"]) == 0
    monkeypatch.chdir(tmp_path / "s")
    assert main(["--store", "names", "list"]) == 11  # and there is no config file to ask
    monkeypatch.setenv("DELTASTORE_INDEX", "local")
    assert "HOME is not set" in refused(capsys, *named, "list")
    assert not list(tmp_path.rglob("~*"))


@pytest.mark.parametrize("value", ["", "here", "~"])
def test_a_home_that_is_no_path_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", value)
    with pytest.raises(UsageError, match="HOME is"):
        places.user_directory("data", instead="x")
    with pytest.raises(UsageError, match="HOME is"):
        places.given("~/x", called="x")


def test_a_directory_of_the_user_that_no_shell_has_expanded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "~/data")
    with pytest.raises(UsageError, match="XDG_DATA_HOME is '~/data'"):
        places.user_directory("data", instead="x")


def test_no_kernel_is_cached_in_a_directory_called_tilde(tmp_path: Path) -> None:
    package = Path(deltastore.__file__).parent
    shutil.copytree(
        package, tmp_path / "lib" / package.name, ignore=shutil.ignore_patterns("__pycache__")
    )
    for directory in (tmp_path / "lib").rglob("*"):
        if directory.is_dir():
            (directory / "__pycache__").touch()  # so that nothing is cached beside the source
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    for more in ({"HOME": "~"}, {"HOME": str(home), "NUMBA_CACHE_DIR": "~/kernels"}):
        environment = kept | {"PYTHONPATH": str(tmp_path / "lib"), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", "import deltastore.tokens"]
        subprocess.run(command, cwd=work, env=environment | more, check=True)
        assert list(work.iterdir()) == []
    assert (home / "kernels").is_dir()


def test_a_working_directory_that_is_gone(store: Path, models: Any, tmp_path: Path) -> None:
    gone = tmp_path / "gone"

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        gone.mkdir()
        return deltastore_in(gone, *argv, shell='rmdir "$PWD"')

    assert run("list", "-q").stdout == "instruct:v1\n"
    assert run("list", "--base", "tmp").returncode == 0  # a label, not /tmp
    out = str(tmp_path / "out")
    done = run("apply", "instruct", "--base", models.new_base, "--out", out, "-q")
    assert (done.returncode, done.stdout) == (0, f"{out}\n")
    for argv in (
        ("--store", "tmp", "list"),
        ("--store", "./s", "list"),
        ("apply", "instruct", "--base", models.new_base, "--out", "out"),
        ("apply", "instruct", "--base", "tmp", "--out", str(tmp_path / "other")),
        ("export", "instruct", "layout"),
        ("extract", "--base", models.base, "--post", "post"),
        ("compare", "instruct", "instruct", "--plot", "x.png"),
    ):
        done = run(*argv)
        assert done.returncode == 2, argv
        assert "working directory, and that is gone" in done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ("--store", "{}", "list", "--base", "{}"),
        ("--store", "./{}", "extract", "--base", "{base}", "--post", "{post}"),
        ("apply", "instruct", "--base", "{new}", "--out", "{}"),
        ("apply", "instruct", "--base", "{new}", "--out", "{}", "--dry-run"),
        ("apply", "instruct", "--base", "./{}", "--out", "o"),
        ("export", "instruct", "{}"),
        ("compare", "instruct", "instruct", "--plot", "{}.png"),
        ("show", "{}"),
    ],
)
@pytest.mark.parametrize("name", ["n" * 300, "/" + "directory/" * 600])
def test_names_that_are_too_long_are_refused(
    store: Path, models: Any, tmp_path: Path, name: str, argv: tuple[str, ...], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"base": models.base, "post": models.post, "new": models.new_base}
    assert main([part.format(name, **names) for part in argv]) in (2, 11, 21, 61)


@pytest.mark.parametrize("name", ["n" * 250, "é" * 120, "run[3]", "a b\n", "lat\udce4in"])
def test_names_that_are_long_or_odd_work(
    store: Path, models: Any, tmp_path: Path, name: str
) -> None:
    shutil.copytree(models.new_base, tmp_path / name)
    out = tmp_path / "out" / name
    assert main(["apply", "instruct", "--base", str(tmp_path / name), "--out", str(out)]) == 0
    assert main(["export", "instruct", str(tmp_path / "layouts" / name)]) == 0
    pair = ["--base", models.base, "--post", str(tmp_path / name)]
    assert main(["extract", *pair, "--name", "odd"]) == 0
    assert main(["list", "--post", str(tmp_path / name)]) == 0
    from_pair = ["--from-base", models.base, "--from-post", str(tmp_path / name)]
    assert main(["apply", *from_pair, "--base", models.base, "--out", str(tmp_path / "o")]) == 0
    for place in (out, tmp_path / "layouts"):
        assert not [path for path in place.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("limit", [100_000, 400_000])
def test_too_little_memory_to_compute_is_said_at_once(store: Path, limit: int) -> None:
    for argv in (("compare", "instruct", "instruct"), ("extract", "--base", "x", "--post", "y")):
        done = deltastore_in(store, *argv, shell=f"ulimit -v {limit}")
        assert done.returncode == 2
        assert f"`ulimit -v` is {limit}" in done.stderr
    assert deltastore_in(store, "extract", "--help", shell=f"ulimit -v {limit}").returncode == 0


@pytest.mark.parametrize(
    ("error", "expected", "word"),
    [
        (MemoryError(), LimitError, "memory"),
        (ImportError("libx.so: failed to map segment from shared object"), LimitError, "memory"),
        (RuntimeError("can't start new thread"), LimitError, "thread"),
        (OSError(24, "Too many open files"), LimitError, "ulimit -n"),
        (OSError(28, "No space left on device"), NoSpaceError, "No space"),
    ],
)
def test_limits_that_libraries_meet_are_no_bugs(
    error: Exception, expected: type[Exception], word: str
) -> None:
    wrapped = RuntimeError("import failed")
    wrapped.__cause__ = error
    for one in (error, wrapped):
        found = as_limit(one)
        assert type(found) is expected
        assert word in str(found)
    assert as_limit(ValueError("x")) is None


def test_address_space_decides_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from deltastore.operations.pipeline import job_count

    def limited(nbytes: int) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (nbytes, nbytes))

    limited(resource.RLIM_INFINITY)
    assert job_count(8) == 8
    limited(640 << 20)
    assert job_count(8) == 1
    limited(1 << 30)
    assert job_count(8) == 3


def test_a_full_stdout_has_an_exit_code_of_its_own(store: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    for argv in (("list",), ("list", "--json"), ("--help",), ("--version",), ("list", "--help")):
        done = deltastore_in(store, *argv, shell="exec >/dev/full")
        assert done.returncode == 3, argv
        assert "Standard output cannot be written" in done.stderr
        assert "Traceback" not in done.stderr
    assert deltastore_in(store, "list", shell="exec >&- <&- 2>&-").returncode == 0
