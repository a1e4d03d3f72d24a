"""What lies beside the weights: what travels with them, what is named, and what is nobody's."""

from __future__ import annotations

import json
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from deltastore.checkpoint import is_model_file, is_small_file, is_tokenizer_file, open_checkpoint
from deltastore.checkpoint.beside import (
    ANOTHER_FORM,
    MAX_LEFT,
    MAX_MODEL_FILES,
    MAX_MODEL_FILES_BYTES,
    bounded,
    left_behind,
    travelling,
)
from deltastore.checkpoint.small_files import MAX_MODEL_FILE_BYTES, module_folders

POOLING = "sentence_transformers.models.Pooling"


def modules(*paths: Any) -> bytes:
    return json.dumps([{"idx": 0, "path": path, "type": POOLING} for path in paths]).encode()


@pytest.mark.parametrize(
    "name",
    [
        "spm.model",
        "source.spm",
        "target.spm",
        "vocab.bpe",
        "bpe.codes",
        "tiktoken.model",
        "qwen.tiktoken",
        "sentencepiece.model",
        "ice_text.model",
        "dict.txt",
        "tokenizer.model.v3",
        "entity_vocab.json",
    ],
)
def test_tokenizers_of_all_families(name: str) -> None:
    assert is_tokenizer_file(name)
    assert is_small_file(name)
    assert not is_model_file(name)
    assert not is_tokenizer_file(f"x/{name}")


def test_the_tokenizers_that_transformers_knows() -> None:
    """Every file that any tokenizer of transformers reads is one of a tokenizer here."""
    transformers = pytest.importorskip("transformers")
    read: set[str] = set()
    for name in dir(transformers):
        if name.endswith(("Tokenizer", "TokenizerFast")):
            # Some need libraries of their own.
            with suppress(ImportError):
                kind = getattr(transformers, name)
                read |= set(getattr(kind, "vocab_files_names", {}).values())
    assert {"vocab.json", "spiece.model", "source.spm"} <= read
    # Whisper's is for evaluation, and has nothing to do with ids.
    assert not [name for name in read - {"normalizer.json"} if not is_tokenizer_file(name)]
    assert is_model_file("normalizer.json")


@pytest.mark.parametrize(
    "name",
    [
        "LICENSE",
        "LICENSE.txt",
        "License.md",
        "LICENCE",
        "LICENSE-CODE",
        "LICENSE-MODEL",
        "NOTICE",
        "Notice.txt",
        "USE_POLICY.md",
        "post-LICENSE",
        "post-2-LICENSE.md",
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates/tool_use.jinja",
        "chat_templates/rag-2.jinja",
        "tokenizer.model.v7m1",
        "README.md",
    ],
)
def test_small_files_have_exact_names(name: str) -> None:
    assert is_small_file(name)
    assert not is_model_file(name)
    for odd in (f"{name}.py", f"x{name}", f"{name} ", f"{name}.", f"x/{name}", f"./{name}"):
        assert not is_small_file(odd)


def test_a_licence_that_does_not_travel_is_named() -> None:
    left = left_behind({"LICENSE-3RD.md": 5, "Notice.pdf": 5, "notes.md": 5}, [], [])
    assert left.keys() == {"LICENSE-3RD.md", "Notice.pdf"}


def test_so_many_templates_travel() -> None:
    sizes = {f"additional_chat_templates/t{i:03}.jinja": 1 for i in range(100)}
    found = travelling(sizes, None)
    assert found == sorted(sizes)[:64]


@pytest.mark.parametrize(
    "name",
    [
        "LICENSE.py",
        "LICENSE-modeling_llama.PY",
        "LICENSE.exe",
        "LICENSE.sh.",
        "NOTICE.so",
        "NOTICE.ipynb",
        "LICENSE.py ",
        "tokenizer.model.v1.py",
        "chat_templates/x.py",
        "modeling.py",
        "x.pkl",
        "1_Pooling/x.py",
        ".git/config.json",
        "../config.json",
        "1_Pooling/../x.json",
        "x/params.json",
        "-rf.json",
        "a\u202e.json",
        "a.json\n",
        "requirements.txt",
        "hyperparams.yaml",
        "model.safetensors.index.json",
        "1_Pooling/model.safetensors.index.json",
        "model.safetensors/x.json",
        "adapter_config.json",
        "model_index.json",
        "quantize_config.json",
        "hf_quant_config.json",
        "deltastore.json",
        "trainer_state.json",
        "training_args.json",
        "LICENSE-x",
        "LICENSE.",
        "LICENSE ",
        "LICENSE.md.py",
        "post-modeling.py",
        "post-post-LICENSE.so",
        "NOTICE\u0405",
        "chat_template",
        "chat_template.py",
        "chat_template.jinja.py",
        "chat_template.jinja2",
        "additional_chat_templates/x.py",
        "additional_chat_templates/x.py.jinja",
        "additional_chat_templates/.x.jinja",
        "additional_chat_templates/x y.jinja",
        "additional_chat_templates/a/x.jinja",
        "additional_chat_templates/x.jinja\n",
        "Additional_chat_templates/x.jinja",
        "x.spm",
        "evil.tiktoken",
        "tokenizer.model.v",
        "tokenizer.model.v1.so",
        "tokenizer.model.v\u0661",
        "x/README.md",
        "readme.md",
        "Config.json",
        "CONFIG.json",
        "Tokenizer_Config.json",
        "Model.Safetensors.Index.json",
        "MODEL_INDEX.json",
        "DeltaStore.json",
        "Adapter_Config.json",
        "HF_Quant_Config.json",
        "modeling.py.json",
        "con.json",
        "NUL.json",
        "com1.x.json",
        "config.json.",
        "config.json ",
        "c\u043enfig.json",
        "model.safetensors.index.json/processor_config.json",
        "1_Pooling/Config.json",
    ],
)
def test_names_that_do_not_travel(name: str) -> None:
    assert not is_small_file(name)
    assert not is_model_file(name)


def test_documents_and_modules_travel() -> None:
    sizes = dict.fromkeys(
        [
            "config.json",
            "params.json",
            "modules.json",
            "sentence_bert_config.json",
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "3_Other/config.json",
            "LICENSE",
            "notes.txt",
        ],
        10,
    )
    found = travelling(sizes, modules("", "1_Pooling", "2_Dense"))
    assert found == [
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "LICENSE",
        "config.json",
        "modules.json",
        "params.json",
        "sentence_bert_config.json",
    ]
    assert left_behind(sizes, found, []) == {
        "2_Dense/model.safetensors": "weights",
        "3_Other/config.json": "of no kind that is carried",
        "notes.txt": "of no kind that is carried",
    }


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"{}",
        b"[",
        b"[5]",
        b"\xff",
        b"[" * 100_000,
        modules("..", "/etc", "a/b", 5, "LICENSE"),
    ],
    ids=["none", "empty", "object", "broken", "numbers", "bytes", "deep", "paths"],
)
def test_modules_that_name_no_folder(data: bytes | None) -> None:
    assert module_folders(data) == frozenset()


def test_too_many_documents_are_named_and_not_carried() -> None:
    names = [f"a{i:03}.json" for i in range(3 * MAX_MODEL_FILES)] + ["modules.json", "params.json"]
    random.Random(1).shuffle(names)
    sizes = dict.fromkeys(names, 2)
    found = travelling(sizes, None)
    assert len(found) == MAX_MODEL_FILES
    # Those that are known to matter come first.
    assert {"modules.json", "params.json"} <= set(found)
    assert left_behind(sizes, found, []).keys() == set(names) - set(found)


def test_too_much_in_documents_is_named_and_not_carried() -> None:
    sizes: dict[str, int | None] = {"big.json": MAX_MODEL_FILE_BYTES + 1, "unknown.json": None}
    assert travelling(sizes, None) == []
    count = MAX_MODEL_FILES_BYTES // MAX_MODEL_FILE_BYTES
    sizes |= {f"a{i}.json": MAX_MODEL_FILE_BYTES for i in range(count + 1)}
    found = travelling(sizes, None)
    assert len(found) == count
    assert len(left_behind(sizes, found, [])) == 3


def test_what_is_left_is_named_and_what_is_nobodys_is_not() -> None:
    names = {
        "value_head.safetensors": "weights",
        "mm_projector.bin": "weights",
        "adapter_model.safetensors": "weights",
        "2_Dense/model.safetensors": "weights",
        "consolidated-*-of-00002.safetensors": ANOTHER_FORM,
        "pytorch_model.bin": ANOTHER_FORM,
        "model.fp16.safetensors": ANOTHER_FORM,
        "model-*-of-00003.safetensors": ANOTHER_FORM,
        "llama-q4.gguf": ANOTHER_FORM,
        "modeling_x.py": "code",
        "recipe.yaml": "of no kind that is carried",
        "onnx/model.onnx": ANOTHER_FORM,
        "original/": ANOTHER_FORM,
        "data/": "a folder of other files",
    }
    files = [name for name in names if "*" not in name and not name.endswith("/")]
    files += [f"consolidated-0000{i}-of-00002.safetensors" for i in (1, 2)]
    files += [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    files += [f"original/consolidated.0{i}.pth" for i in range(4)]
    files += [f"data/{i}.csv" for i in range(4)]
    noise = [
        ".gitattributes",
        ".cache/huggingface/download/model.safetensors.metadata",
        "logo.png",
        "assets/logo.png",
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state_0.pth",
        "trainer_state.json",
        "eval_results.json",
        "checkpoint-500/model.safetensors",
        "runs/x/events.out.tfevents.1",
        "pytorch_model.bin.index.json",
        "CHANGELOG.md",
    ]
    sizes = dict.fromkeys([*files, *noise, "model.safetensors"], 5)
    assert left_behind(sizes, [], ["model.safetensors"]) == dict(sorted(names.items()))


def test_names_are_fit_to_be_said() -> None:
    found = left_behind(dict.fromkeys(["a\x1b[2J", "b\udc80", "c" * 900], 1), [], [])
    assert all(name.isprintable() and len(name) <= 600 for name in found)
    many = bounded({f"x{i:05}": "code" for i in range(5 * MAX_LEFT)})
    assert len(many) == MAX_LEFT
    assert list(many)[-1] == f"~ and {4 * MAX_LEFT + 1} more"


def test_a_directory_is_looked_through(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "model.safetensors", "a")
    for name, data in {
        "config.json": b"{}",
        "modules.json": modules("", "1_Pooling"),
        "1_Pooling/config.json": b"{}",
        "value_head.safetensors": b"x",
        "be/low/the/top/x.bin": b"x",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.bin").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.json")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.files) == ["1_Pooling/config.json", "config.json", "modules.json"]
        assert checkpoint.left == {
            "be/low/the/top/x.bin": "weights",
            "value_head.safetensors": "weights",
        }


def test_a_lone_file_has_nothing_beside_it(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "x.safetensors", "a")
    (tmp_path / "other.safetensors").write_bytes(b"x")
    with open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        assert checkpoint.left == {}
