"""mergekit, in an environment of its own, making the same result from three checkpoints."""

import json
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = ("torch==2.13.0", "mergekit==0.1.5")
ENVIRONMENT_BYTES = 3_000_000_000


def install_mergekit(environment: Path) -> None:
    """Create the virtual environment, unless it is there.

    torch comes first and stays pinned: what mergekit would choose by itself may bring gigabytes
    of CUDA packages.

    Raises:
        subprocess.CalledProcessError: pip could not install it.
    """
    if (environment / "bin/mergekit-yaml").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, REQUIREMENTS[0]], check=True)
    subprocess.run([*pip, *REQUIREMENTS], check=True)


def mergekit_version(environment: Path) -> str:
    """The version that is installed there."""
    question = "import importlib.metadata as m; print(m.version('mergekit'))"
    done = subprocess.run(
        [str(environment / "bin/python"), "-c", question],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def mergekit_command(environment: Path, recipe: Path, out: Path) -> list[str]:
    """The command line: mergekit's defaults, except that there is no tokenizer to copy."""
    program = str(environment / "bin/mergekit-yaml")
    return [program, str(recipe), str(out), "--no-copy-tokenizer", "--quiet"]


def write_recipe(path: Path, *, new_base: Path, base: Path, post: Path) -> None:
    """Write the recipe new_base + post - base. JSON is YAML."""
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(new_base),
        "models": [
            {"model": str(post), "parameters": {"weight": 1}},
            {"model": str(base), "parameters": {"weight": -1}},
        ],
        "parameters": {"normalize": False},
        "dtype": "bfloat16",
    }
    path.write_text(json.dumps(recipe, indent=2) + "\n")
