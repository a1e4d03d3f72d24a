"""What extract, apply and looking at a store import, and that processes agree on every byte."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import assert_same_bits, load, model, save, trained

import deltastore

WORK = """
import sys
import deltastore

assert not {"numpy", "numba", "torch", "sqlalchemy"} & sys.modules.keys()
place, base, post, out = sys.argv[1:]
with deltastore.open(place) as store:
    result = store.extract(base, post, name="x")
    assert store.apply(result, base=base, out=out).restored
    assert store.apply(result, base=base, out=out + "-half", scale=0.5, dtype="float16").tensors
    assert store.verify().problems == ()
    assert not {"torch", "transformers", "huggingface_hub", "ml_dtypes"} & sys.modules.keys()
print(result.digest)
"""

LOOK = """
import sys
import deltastore

with deltastore.open(sys.argv[1], create=False) as store:
    (listed,) = store.list()
    assert store.show(listed).tensors
    assert store.show("x:v1").name == "x"
print(" ".join(sorted({"numpy", "numba", "torch", "transformers", "ml_dtypes", "zstandard"}
                      & sys.modules.keys())))
"""


def run(script: str, *arguments: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("pair")
    base = model("base")
    files = {"tokenizer_config.json": '{"eos_token": "a", "name_or_path": "/x"}'}
    config = {"model_type": "llama", "vocab_size": 96}
    return (
        save(directory / "base", base, config=config, files=files),
        save(directory / "post", trained(base, "post"), config=config, files=files),
    )


def test_without_torch_and_the_same_in_every_process(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """The second process could not import torch if it wanted to."""
    blocked = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n" + WORK
    blocked = blocked.replace('"torch", ', "").replace('"transformers", ', "")
    digests = set()
    for seed, script in enumerate((WORK, blocked)):
        out = tmp_path / f"out{seed}"
        environment = {"PYTHONHASHSEED": str(seed), "TZ": f"UTC{seed}", "LC_ALL": "C"}
        digests.add(run(script, tmp_path / f"store{seed}", *pair, out, **environment))
        assert_same_bits(load(out), load(pair[1]))
    with deltastore.open(tmp_path / "store") as store:
        digests.add(store.extract(*pair, name="x", jobs=2).digest)
    assert len(digests) == 1


def test_looking_needs_no_library_that_computes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with deltastore.open(tmp_path / "store") as store:
        store.extract(*pair, name="x")
    assert run(LOOK, tmp_path / "store") == ""
