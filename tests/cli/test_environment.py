"""Environments as containers, services and jobs have them: no home, no directory, small limits."""

from __future__ import annotations

import errno
import json
import os
import pwd
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import deltastore
from deltastore.cli.main import main
from deltastore.errors import LimitError, NoSpaceError, UsageError
from deltastore.system import places
from deltastore.system.limits import as_limit

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
    for verb in ("list", "doctor", "verify"):
        message = refused(capsys, *named, verb)
        assert message.startswith("DELTASTORE_INDEX is 'local'")
        assert "HOME is not set" in message
    assert not list(tmp_path.rglob("~*"))


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("home", [None, "/dev/null"])
def test_without_a_home_a_shared_store_is_used_with_an_index_in_memory(
    home: str | None,
    store: Path,
    models: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if home:
        monkeypatch.setenv("HOME", home)
    monkeypatch.chdir(tmp_path)
    store.chmod(0o777)
    out = ("--out", str(tmp_path / "out"))
    assert main(["apply", "instruct", "--base", models.new_base, *out]) == 0
    pair = ("--base", models.base, "--post", models.new_base)
    assert main(["extract", *pair, "--name", "second"]) == 0
    assert main(["tag", "second", "t"]) == 0
    capsys.readouterr()
    assert main(["list", "-q"]) == 0
    assert capsys.readouterr().out.split() == ["instruct:v1", "second:v1"]
    assert main(["doctor", "--json"]) == 0
    checks = {check["what"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["index"]["found"].startswith("in memory: ")
    assert "HOME" in checks["index"]["found"]
    assert not list(tmp_path.rglob("~*"))


@pytest.mark.parametrize("value", ["", "here", "~", "/dev/null", sys.executable])
def test_a_home_that_is_no_directory_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
        command = [sys.executable, "-c", "import deltastore.kernels.palette"]
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


@pytest.mark.parametrize("name", ["é" * 60, "lat\udce4in"])
def test_paths_are_printed_for_scripts_as_they_are(
    store: Path, models: Any, tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    command = [sys.executable, "-m", "deltastore", "apply", "instruct", "-q"]
    done = subprocess.run(
        [*command, "--base", models.new_base, "--out", out],
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout == os.fsencode(out) + b"\n"


def test_a_store_with_a_path_too_long_for_sqlite(
    models: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("DELTASTORE_INDEX", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    named = ["--store", str(tmp_path / ("n" * 250) / ("m" * 250) / "store")]
    pair = ["--base", models.base, "--post", models.post]
    assert main([*named, "extract", *pair, "--name", "m"]) == 0
    assert main([*named, "tag", "m", "t"]) == 0
    capsys.readouterr()
    assert main([*named, "list", "-q"]) == 0
    assert capsys.readouterr().out == "m:v1\n"
    assert list((tmp_path / "cache" / "deltastore" / "indexes").glob("*.db"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("c" * 250) / ("d" * 250)))
    assert main([*named, "list", "-q"]) == 0
    monkeypatch.setenv("DELTASTORE_INDEX", "store")
    assert main([*named, "list"]) == 10
    assert "SQLite opens at most 504" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [0, 8, 40])
def test_a_limit_on_the_size_of_files_is_named(store: Path, models: Any, limit: int) -> None:
    def limited(*argv: str) -> subprocess.CompletedProcess[str]:
        return deltastore_in(store.parent, *argv, shell=f"ulimit -f {limit}")

    assert limited("list", "-q").stdout == "instruct:v1\n"
    assert limited("verify").returncode == 0
    out = str(store.parent / "out")
    for argv in (
        ("apply", "instruct", "--base", models.new_base, "--out", out),
        ("tag", "instruct", "t"),
    ):
        done = limited(*argv)
        # What is small may fit.
        assert done.returncode == 16 or (limit and done.returncode == 0), argv
        assert done.returncode == 0 or "`ulimit -f` allows " in done.stderr
    assert deltastore_in(store.parent, "verify").returncode == 0
    assert not any((store / "leases").iterdir())


def test_a_limit_on_open_files_is_named(store: Path, models: Any, tmp_path: Path) -> None:
    for argv in (
        ("apply", "instruct", "--base", models.new_base, "--out", str(tmp_path / "out")),
        ("extract", "--base", models.base, "--post", models.new_base, "--name", "second"),
        ("tag", "instruct", "t"),
    ):
        done = deltastore_in(store.parent, *argv, shell="ulimit -n 6")
        assert done.returncode == 2, argv
        assert "`ulimit -n` is 6" in done.stderr
    assert not (tmp_path / "out").exists()


def test_no_further_process_to_read_a_pickle(
    store: Path, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    pickled = tmp_path / "pickled"
    pickled.mkdir()
    with zipfile.ZipFile(pickled / "pytorch_model.bin", "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02}.")
    (pickled / "config.json").write_text("{}")
    monkeypatch.setattr(subprocess, "Popen", refuse)
    apply = ("apply", "instruct", "--base", str(pickled), "--out", str(tmp_path / "out"))
    assert "start no other" in refused(capsys, *apply)


def test_a_umask_that_closes_what_is_made_is_named() -> None:
    before = os.umask(0o777)
    try:
        found = as_limit(PermissionError(errno.EACCES, "Permission denied"))
        assert "umask is 777" in str(found)
        assert os.umask(0o022) == 0o777
        assert as_limit(PermissionError(errno.EACCES, "Permission denied")) is None
    finally:
        os.umask(before)


def test_a_file_that_is_called_tilde_may_be_meant(
    store: Path, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models.new_base, tmp_path / "~base")
    pair = ["--base", "./~base", "--post", models.post]
    assert main(["--store", "./~store", "extract", *pair, "--name", "m"]) == 0
    assert main(["--store", "./~store", "list"]) == 0
    assert main(["--store", "./~store", "doctor"]) == 0
    assert main(["apply", "instruct", "--base", "./~base", "--out", "./~out"]) == 0
    assert main(["export", "instruct", "./~layout"]) == 0
    assert {path.name for path in tmp_path.glob("~*")} == {"~base", "~store", "~out", "~layout"}


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
    from deltastore.execution.thread_pool import job_count

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
