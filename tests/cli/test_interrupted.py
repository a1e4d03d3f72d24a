import signal
import subprocess
import sys

import pytest

SLEEPER = """
import signal, sys, time
# A test run in the background may have been started with it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
import deltastore.operations.doctor as operation
from deltastore.cli.main import run

def sleeping(path, **options):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned", flush=True)

operation.doctor = sleeping
sys.argv = ["deltastore", "doctor"]
run()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
