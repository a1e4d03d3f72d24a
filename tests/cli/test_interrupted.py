import os
import signal
import subprocess
import sys

import pytest

from deltastore.cli import interruption
from deltastore.cli.interruption import ended_as_interrupted
from deltastore.cli.main import main

SLEEPER = """
import signal, sys, time
# A test run in the background may have been started with it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
import deltastore.operations.doctor as operation
from deltastore.cli.main import run

def sleeping(path, **options):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        if "again" in again:
            import os
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)
        print("cleaned", flush=True)

operation.doctor = sleeping
sys.argv, again = ["deltastore", "doctor"], sys.argv
run()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU])
def test_a_signal_unwinds_and_exits_with_130(number: signal.Signals) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SLEEPER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert out == "cleaned\n"
    assert "Interrupted" in err
    assert "Traceback" not in err


def test_a_second_signal_does_not_end_the_clean_up() -> None:
    """The terminal's, and its shell's."""
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER, "again"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGHUP)
        out, _ = child.communicate(timeout=30)
    assert (child.returncode, out) == (130, b"cleaned\n")


def test_nohup_is_obeyed() -> None:
    ignoring = SLEEPER.replace("SIGHUP, signal.SIG_DFL", "SIGHUP, signal.SIG_IGN")
    ignoring = ignoring.replace("time.sleep(60)", "time.sleep(0.5)")
    with subprocess.Popen(
        [sys.executable, "-c", ignoring], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGHUP)
        _, err = child.communicate(timeout=30)
    assert child.returncode != 130
    assert b"Interrupted" not in err


@pytest.mark.parametrize("error", [EOFError, KeyboardInterrupt])
def test_what_a_library_raises_is_not_told_as_the_users_wish(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("deltastore.operations.doctor.doctor", failing)
    assert main(["doctor"]) == 1
    told = capsys.readouterr().err
    assert f"This is a bug in deltastore: {error.__name__}" in told
    assert "Interrupted" not in told


def test_openblas_which_sends_the_signal_of_ctrl_c_starts_no_thread() -> None:
    environment = {name: value for name, value in os.environ.items() if "_NUM_THREADS" not in name}
    code = (
        "import sys, os; sys.argv = ['deltastore', 'doctor', '--json']\n"
        "from deltastore.cli.main import run\n"
        "try: run()\n"
        "finally:\n"
        "    import numpy\n"
        "    print('threads', len(os.listdir('/proc/self/task')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "threads 1"


def test_who_asks_again_later_is_not_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_PATIENCE_S", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    with ended_as_interrupted() as came:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
    assert came == [signal.SIGTERM] * 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_handlers_of_a_caller_stay_his() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: heard.append(number))
    try:
        with ended_as_interrupted() as came:
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (heard, came) == ([signal.SIGHUP], [])
