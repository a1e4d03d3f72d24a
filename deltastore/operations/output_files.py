"""The small files of an output checkpoint, so that it is complete and loads.

* ``config.json`` is the new base's (its rope and context length are its own), with the vocabulary
  size of the output's embeddings and the dtype of the output.
* The tokenizer is the new base's, unless post has tokens that its base lacked, or has dropped rows
  of the vocabulary: the new base's would then give tokens that have no row.
* Chat template, generation config and special tokens are post's.
* ``deltastore.json`` says what was applied to what; ``README.md`` says it to people.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deltastore.checkpoint import Checkpoint
from deltastore.manifest.nesting import is_nested_too_deeply
from deltastore.operations.added_tokens import with_post_tokens
from deltastore.operations.embeddings import head_of, may_tie
from deltastore.operations.recipes import Recipe
from deltastore.operations.small_files import is_tokenizer_file, json_object, read_portable
from deltastore.operations.vocabulary import Vocabulary

Files = dict[str, bytes]

_FROM_POST = ("generation_config.json", "special_tokens_map.json")
_SPECIAL_KEYS = (
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "sep_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
    "extra_special_tokens",
)
_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")
_NO_VOCABULARY = ("tokenizer_config.json", "special_tokens_map.json", "merges.txt")
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def compose(
    base: Checkpoint,
    deltas: Sequence[tuple[Mapping[str, bytes], Mapping[str, bytes]]],
    recipes: Mapping[str, Recipe],
    words: Vocabulary,
) -> Files:
    """The small files of the output, but for provenance and card.

    Args:
        base: The new base.
        deltas: Each artifact's small files of its source base (config, and the tokenizer if post's
            differs) and of post. The last one's tokenizer, template and generation config win;
            the licences of all hold.
        recipes: The output's tensors.
        words: How the last delta's tokens stand to the new base's.
    """
    source_base, post = deltas[-1]
    own = {name: read_portable(name, path) for name, path in base.files.items()}
    files = {name: data for name, data in own.items() if name != "README.md"}
    if words.verdict == "matched":
        tokenizer = {name: data for name, data in own.items() if is_tokenizer_file(name)}
        files |= with_post_tokens(tokenizer, post, words)
    elif (
        not _has_tokenizer(own)
        or _post_added_tokens(source_base, post)
        or (_has_tokenizer(post) and _drops_rows(own.get("config.json", b""), recipes))
    ):
        for name in [name for name in files if is_tokenizer_file(name)]:
            del files[name]
        files |= {name: data for name, data in post.items() if is_tokenizer_file(name)}
    elif "tokenizer_config.json" in files and "tokenizer_config.json" in post:
        files["tokenizer_config.json"] = _with_special_tokens(
            files["tokenizer_config.json"], post["tokenizer_config.json"]
        )
    for name in _FROM_POST:
        if name in post:
            files[name] = post[name]
    _take_chat_template(files, post)
    for name, data in post.items():
        if name.endswith("processor_config.json"):
            files.setdefault(name, data)
    for _, own_post in deltas:
        for name, data in own_post.items():
            if name.upper().startswith(_LEGAL):
                _add_legal(files, name, data)
    if "config.json" in files:
        files["config.json"] = _model_config(
            base,
            files["config.json"],
            source_base.get("config.json"),
            post.get("config.json"),
            recipes,
        )
    return files


def _add_legal(files: Files, name: str, data: bytes) -> None:
    """Licences of base and posts all hold, so all are there, each once."""
    names = itertools.chain(
        [name, f"post-{name}"], (f"post-{i}-{name}" for i in itertools.count(2))
    )
    free = next(n for n in names if files.get(n, data) == data)
    files[free] = data


def provenance(
    *,
    refs: Sequence[Mapping[str, Any]],
    base: Mapping[str, Any],
    dtype: str | None,
    scale_for: Sequence[Mapping[str, Any]],
    skipped: Sequence[str],
    vocabulary: Sequence[Mapping[str, Any]],
    restored: bool,
    partial: Mapping[str, Any] | None,
    tool: str,
) -> bytes:
    """``deltastore.json``: refs, digests, scales, lineage figures, what was left out, tool."""
    document = {
        "format": 1,
        "tool": tool,
        "formula": "out = base + sum(scale * delta)",
        "base": dict(base),
        "deltas": [dict(ref) for ref in refs],
        "scale_for": [dict(rule) for rule in scale_for],
        "skipped": list(skipped),
        "vocabulary": [dict(words) for words in vocabulary],
        "dtype": dtype,
        "restored": restored,
        "left_out": dict(partial) if partial is not None else None,
    }
    return _json(document)


def card(base: str, deltas: Sequence[Mapping[str, Any]], tool: str, repos: Sequence[str]) -> bytes:
    """``README.md`` with the Hub's metadata.

    Args:
        base: What to call the new base.
        deltas: As in the provenance.
        tool: Name and version of this tool.
        repos: Hub ids of the new base and the posts, for ``base_model``.
    """
    lines = ["---"]
    if repos:
        lines += ["base_model:", *(f"- {repo}" for repo in repos), "base_model_relation: merge"]
    lines += ["tags:", "- deltastore", "- task-arithmetic", "---", "", f"# {base} + delta", ""]
    lines.append(
        "These weights are those of a base model plus the weight deltas of post-training "
        "([ParamΔ](https://arxiv.org/abs/2504.21023)); no training took place."
    )
    lines += ["", f"- base: {base}"]
    for delta in deltas:
        lines.append(
            f"- delta: {delta['ref']} ({delta['base']} → {delta['post']}), scale "
            f"{delta['scale']:g}, `{delta['digest']}`"
        )
    lines += ["", f"Made with {tool}; `deltastore.json` has the details.", ""]
    return "\n".join(lines).encode()


def _has_tokenizer(files: Mapping[str, bytes]) -> bool:
    return any(is_tokenizer_file(name) for name in files)


def _post_added_tokens(source_base: Mapping[str, bytes], post: Mapping[str, bytes]) -> bool:
    """Whether post's vocabulary holds tokens that its base's did not.

    Files that cannot be compared token by token count as extended if they differ at all.
    """
    if not _has_tokenizer(source_base):
        return False  # the same as post's, or there is none to compare with
    known: set[str] = set()
    wanted: set[str] = set()
    for name in (name for name in post if is_tokenizer_file(name)):
        before, after = source_base.get(name), post[name]
        if name in _VOCABULARIES:
            tokens = (_tokens(before) if before is not None else set(), _tokens(after))
            if before != after and (tokens[0] is None or tokens[1] is None):
                return True
            known |= tokens[0] or set()
            wanted |= tokens[1] or set()
        elif name not in _NO_VOCABULARY and before != after:
            return True
    return not wanted <= known


def _tokens(data: bytes) -> set[str] | None:
    """The token strings of a vocabulary file; None if it is not understood."""
    document = json_object(data)
    if document is None:
        return None
    model = document.get("model")
    if not isinstance(model, dict):
        return set(document)
    vocabulary = model.get("vocab")
    tokens: set[str] = set()
    if isinstance(vocabulary, dict):
        tokens |= set(vocabulary)
    elif isinstance(vocabulary, list):
        tokens |= {str(item[0]) for item in vocabulary if isinstance(item, list) and item}
    else:
        return None
    added = document.get("added_tokens")
    if isinstance(added, list):
        tokens |= {str(item.get("content")) for item in added if isinstance(item, dict)}
    return tokens


def _with_special_tokens(own: bytes, post: bytes) -> bytes:
    """The new base's tokenizer_config.json with post's special tokens and chat template."""
    document, other = json_object(own), json_object(post)
    if document is None or other is None:
        return own
    for key in (*_SPECIAL_KEYS, "chat_template"):
        if key in other:
            document[key] = other[key]
    return _rewritten(document, own)


def _take_chat_template(files: Files, post: Mapping[str, bytes]) -> None:
    """Post's chat template in whatever form post has it; none of the new base's beside it."""
    names = [name for name in post if _is_template(name)]
    embedded = "chat_template" in (json_object(post.get("tokenizer_config.json", b"")) or {})
    if not names and not embedded:
        return
    for name in [name for name in files if _is_template(name)]:
        del files[name]
    for name in names:
        files[name] = post[name]
    own = json_object(files.get("tokenizer_config.json", b""))
    if not embedded and own is not None and "chat_template" in own:
        del own["chat_template"]
        files["tokenizer_config.json"] = _rewritten(own, files["tokenizer_config.json"])


def _is_template(name: str) -> bool:
    return name.startswith(("chat_template", "additional_chat_templates/"))


def _ties(
    base: Checkpoint,
    document: Mapping[str, Any],
    source: bytes | None,
    post: bytes | None,
    recipes: Mapping[str, Recipe],
) -> bool | None:
    """What ``tie_word_embeddings`` of the output is; None if the new base's word holds.

    A head that the output has and the new base ties would be ignored by its readers, and one that
    it has no longer would be drawn at random.
    """
    heads = (head_of(base.tensors) is not None, head_of(recipes) is not None)
    if heads[0] != heads[1]:
        return heads[0]
    before, after = json_object(source or b"") or {}, json_object(post or b"") or {}
    tied = after.get("tie_word_embeddings")
    if isinstance(tied, bool) and tied != before.get("tie_word_embeddings", not tied):
        return tied
    # A head beside embeddings that are said to be it is read by nobody, but post's is its own.
    return False if heads[1] and may_tie(document) and not may_tie(after) else None


def _main_dtype(tensors: Iterable[tuple[str, int]]) -> str | None:
    """The floating-point dtype of most elements, from pairs of dtype and elements."""
    counts: Counter[str] = Counter()
    for dtype, elements in tensors:
        if dtype in _TORCH_NAMES:
            counts[dtype] += elements
    return counts.most_common(1)[0][0] if counts else None


def _model_config(
    base: Checkpoint,
    data: bytes,
    source: bytes | None,
    post: bytes | None,
    recipes: Mapping[str, Recipe],
) -> bytes:
    """The new base's config with what the output's tensors say otherwise."""
    document = json_object(data)
    if document is None:
        return data
    changed = False
    tied = _ties(base, document, source, post, recipes)
    if tied is not None and document.get("tie_word_embeddings") != tied:
        document["tie_word_embeddings"], changed = tied, True
    for part, _, rows in _resized_vocabularies(document, recipes):
        changed = changed or part["vocab_size"] != rows
        part["vocab_size"] = rows
    own = _main_dtype((r.base.dtype, r.base.elements) for r in recipes.values() if r.base)
    dtype = _main_dtype((r.output.dtype, r.output.elements) for r in recipes.values())
    if dtype is not None and dtype != own:
        for key in ("dtype", "torch_dtype"):
            if key in document:
                document[key] = _TORCH_NAMES[dtype]
                changed = True
    return _rewritten(document, data) if changed else data


def _resized_vocabularies(
    config: dict[str, Any], recipes: Mapping[str, Recipe]
) -> list[tuple[dict[str, Any], int, int]]:
    """The parts of a config whose vocabulary was resized, with the rows before and after.

    Embeddings and heads are told by having as many rows as the vocabulary.
    """
    found = []
    for recipe in recipes.values():
        if recipe.base is None or len(recipe.output.shape) != 2:
            continue
        before, after = recipe.base.shape[0], recipe.output.shape[0]
        for part in (config, config.get("text_config")):
            if before != after and isinstance(part, dict) and part.get("vocab_size") == before:
                found.append((part, before, after))
    return found


def _drops_rows(config: bytes, recipes: Mapping[str, Recipe]) -> bool:
    """Whether the output has fewer rows for tokens than the new base."""
    resized = _resized_vocabularies(json_object(config) or {}, recipes)
    return any(after < before for _, before, after in resized)


def _rewritten(document: Mapping[str, Any], original: bytes) -> bytes:
    """``document`` as bytes, or ``original`` where it is nested deeper than any tool's own."""
    return original if is_nested_too_deeply(document) else _json(document)


def _json(document: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can say
        return (json.dumps(document, indent=2) + "\n").encode()
