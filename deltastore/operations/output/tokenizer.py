"""The tokenizer of an output: the new base's or post's, and post's special tokens in either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltastore.checkpoint import read_vocabulary
from deltastore.errors import DeltaConflictError, MissingExtraError, TokenizerError
from deltastore.operations.added_tokens import with_post_tokens
from deltastore.operations.matching import Sides
from deltastore.operations.output.config import OF_THE_FILE
from deltastore.operations.output.documents import read_object, same, to_json
from deltastore.operations.output.ledger import Ledger
from deltastore.operations.output.token_files import (
    Flags,
    Reader,
    added_tokens_decoder,
    holds_token,
)
from deltastore.operations.small_files import is_tokenizer_file

Files = dict[str, bytes]

CONFIG = "tokenizer_config.json"
MAP = "special_tokens_map.json"
_LISTS = ("additional_special_tokens", "extra_special_tokens")
"""Two names for the same: the second since transformers 5, as a list or by name."""

_PLAIN: Flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")
_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
"""The parts of a ``tokenizer.json`` that are no tokens."""

_RULED = frozenset({"added_tokens_decoder", "backend", "chat_template", "is_local", *OF_THE_FILE})
"""Fields of a configuration that have a rule of their own, or say how it was written."""

_NO_VOCABULARY = (CONFIG, MAP, "merges.txt")


def take_tokenizer(
    files: Files,
    deltas: Sequence[Sides],
    ledger: Ledger,
    *,
    fewer_rows: bool,
    restoring: bool = False,
) -> None:
    """Put the output's tokenizer into ``files``, which has the new base's.

    All files of a tokenizer are of one side: a ``tokenizer.model`` never stands beside a
    ``tokenizer.json`` that does not belong to it. Special tokens and their flags are post's. What
    else post changed is said.

    Args:
        files: The output's small files.
        deltas: Small files and tokens of all deltas; the last one's special tokens count.
        ledger: Is told whose the files are.
        fewer_rows: The output has fewer rows for tokens than the new base.
        restoring: The new base is the source base, as far as is known, and the output post.

    Raises:
        DeltaConflictError: Several deltas add tokens, and not the same.
        TokenizerError: The new base's tokenizer cannot take tokens that post added.
    """
    reader = Reader()
    _refuse_conflict(deltas, reader)
    source_base, post = deltas[-1].base, deltas[-1].post
    own = _tokenizer(files)
    for delta in deltas:
        if delta.words.verdict == "matched":
            for name, data in with_post_tokens(own, delta.post, delta.words).items():
                if own.get(name) != data:
                    own[name] = files[name] = data
                    ledger.origins[name] = "both"
    # Rows are post's by index only where none went by token, and the embeddings are not left out.
    by_index = all(delta.words.verdict not in ("matched", "skipped") for delta in deltas)
    added = [d for d in deltas if by_index and post_added_tokens(d.base, d.post, reader)]
    if added and deltas[-1] not in added:
        source_base, post = added[-1].base, added[-1].post
    fewer = by_index and fewer_rows and has_tokenizer(post)
    restored = restoring and own == _tokenizer(source_base) and has_tokenizer(post)
    if added or fewer or restored or not has_tokenizer(files):
        for name in [name for name in files if is_tokenizer_file(name)]:
            del files[name]
            ledger.origins.pop(name, None)
        for name, data in post.items():
            if is_tokenizer_file(name):
                files[name] = data
                ledger.origins[name] = "post"
        return
    _take_special_tokens(files, post, reader, ledger)
    _take_flags(files, source_base, post, reader, ledger)
    _tell_left(files, source_base, post, ledger)


def _tokenizer(files: Mapping[str, bytes]) -> Files:
    return {name: data for name, data in files.items() if is_tokenizer_file(name)}


def _refuse_conflict(deltas: Sequence[Sides], reader: Reader) -> None:
    """Two deltas that add tokens would do so in one row, and one tokenizer would be dropped."""
    if len(deltas) < 2:
        return
    by_token = any(delta.words.verdict == "matched" for delta in deltas)
    adding = [i for i, delta in enumerate(deltas) if _adds(delta, reader)]
    alone = len(adding) == 1 and deltas[adding[0]].words.verdict == "matched"
    if not adding or alone:
        return
    posts = [_vocabulary(deltas[i].post) for i in adding]
    if not by_token and all(post is not None and post == posts[0] for post in posts):
        return  # by index, and the same tokens in the same rows
    if not by_token and len(adding) == 1:
        return
    numbers = " and ".join(str(i + 1) for i in adding)
    raise DeltaConflictError(
        f"Of {len(deltas)} deltas, number {numbers} would add or rename tokens; expected one that "
        "goes by token, or by index the same tokens in the same rows.",
        hint="Apply one after the other with an output between them, or leave embeddings and "
        "head as they are: `--skip-embeddings`.",
    )


def _adds(delta: Sides, reader: Reader) -> bool:
    """Whether post has tokens that its base has not, and the output is to have them."""
    if delta.words.verdict == "matched":
        return bool(delta.words.added or delta.words.renamed)
    return delta.words.verdict == "same" and post_added_tokens(delta.base, delta.post, reader)


def _vocabulary(files: Mapping[str, bytes]) -> dict[str, int] | None:
    try:
        return read_vocabulary(files, where="post")
    except (TokenizerError, MissingExtraError):
        return None


def has_tokenizer(files: Mapping[str, bytes]) -> bool:
    """Whether there is any file of a tokenizer."""
    return any(is_tokenizer_file(name) for name in files)


def post_added_tokens(
    source_base: Mapping[str, bytes], post: Mapping[str, bytes], reader: Reader
) -> bool:
    """Whether post's vocabulary holds tokens that its base's did not.

    Files that cannot be compared token by token count as extended if they differ at all.
    """
    if not has_tokenizer(source_base):
        return False  # the same as post's, or there is none to compare with
    known: set[str] = set()
    wanted: set[str] = set()
    common = []
    for name in (name for name in post if is_tokenizer_file(name)):
        before, after = source_base.get(name), post[name]
        if before == after:
            common.append(name)
        elif name in _VOCABULARIES:
            old = reader.vocabulary(before) if before is not None else None
            new = reader.vocabulary(after)
            if new is None or (old is None and before is not None):
                return True
            known |= old.tokens if old is not None else frozenset()
            wanted |= new.tokens
        elif name not in _NO_VOCABULARY:
            return True
    # Files that are equal need no look, unless what is new in one may stand in another.
    for name in common if not wanted <= known else ():
        found = reader.vocabulary(post[name]) if name in _VOCABULARIES else None
        known |= found.tokens if found is not None else frozenset()
    return not wanted <= known


def special_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens that a document names: by role, and those without one."""
    return {
        name: value
        for name, value in config.items()
        if name in _LISTS
        or (name.endswith("_token") and (value is None or _contents(value) is not None))
    }


def _take_special_tokens(
    files: Files, post: Mapping[str, bytes], reader: Reader, ledger: Ledger
) -> None:
    """Post's special tokens in the new base's documents, as far as it has these tokens.

    Post may say them in one document, the new base in the other; transformers reads both, and
    which of them counts depends on what else is there. So they agree in the output.
    """
    documents = {name: read_object(post.get(name)) for name in (MAP, CONFIG)}
    wanted: dict[str, Any] = {}
    for document in documents.values():
        wanted |= special_tokens(document or {})
    tokenizer = files.get("tokenizer.json")
    lost: list[str] = []
    for name, value in list(wanted.items()):
        kept = _known(value, tokenizer, reader, lost)
        if kept is None and value is not None:
            del wanted[name]
        else:
            wanted[name] = kept
    for token in dict.fromkeys(lost):
        ledger.warn(CONFIG, f"the new base's tokenizer lacks post's special token {token!r}")
    if not wanted:
        return
    if not lost and MAP in post and documents[MAP] is not None:
        files[MAP] = post[MAP]
        ledger.origins[MAP] = "post"
    elif MAP in files:
        # What is null in a configuration is absent in the map.
        _merge(files, MAP, wanted, ledger, absent=True)
    if CONFIG in files:
        _merge(files, CONFIG, wanted, ledger)
    elif documents[CONFIG] is not None:
        files[CONFIG] = to_json(wanted)
        ledger.origins[CONFIG] = "post"


def _merge(
    files: Files, name: str, wanted: Mapping[str, Any], ledger: Ledger, *, absent: bool = False
) -> None:
    """Have the new base's document name post's special tokens."""
    document = read_object(files[name])
    if document is None:
        return
    output = dict(document)
    if any(key in wanted for key in _LISTS):
        for key in _LISTS:
            output.pop(key, None)
    output |= wanted
    if absent:
        output = {key: value for key, value in output.items() if value is not None}
    changed = [key for key in wanted if not same(output.get(key), document.get(key))]
    if not changed and output.keys() == document.keys():
        return
    files[name] = to_json(output)
    ledger.origins[name] = "both"
    if changed:
        ledger.note(name, f"special tokens of post: {', '.join(changed)}")


def _known(value: Any, tokenizer: bytes | None, reader: Reader, lost: list[str]) -> Any:
    """A special token, or several, without those that the new base's tokenizer lacks."""
    contents = _contents(value)
    if contents is not None:
        if tokenizer is None or holds_token(tokenizer, contents, reader):
            return value
        lost.append(contents)
        return None
    if isinstance(value, list):
        found = [_known(item, tokenizer, reader, lost) for item in value]
        return [item for item in found if item is not None]
    if isinstance(value, dict):
        kept = {name: _known(item, tokenizer, reader, lost) for name, item in value.items()}
        return {name: item for name, item in kept.items() if item is not None}
    return value


def _contents(value: Any) -> str | None:
    """The text of a token, which may be a document of its own with flags; None if it is none."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _take_flags(
    files: Files,
    source_base: Mapping[str, bytes],
    post: Mapping[str, bytes],
    reader: Reader,
    ledger: Ledger,
) -> None:
    """How tokens are treated, where post changed that of tokens that its base had.

    A token that post made special is no longer printed, and no longer split; it is told by its
    text, as its id may be another in the new base.
    """
    if not has_tokenizer(source_base):
        return  # the same as post's, or there is none to compare with
    before = _all_flags(source_base, reader, post)
    after = _all_flags(post, reader, source_base)
    changed = {token: flags for token, flags in after.items() if flags != before.get(token)}
    if not changed:
        return
    moved: set[str] = set()
    tokenizer = read_object(files.get("tokenizer.json"))
    ids: dict[str, int] = {}
    if tokenizer is not None:
        ids = _flag_tokenizer(tokenizer, changed, moved)
        if moved:
            files["tokenizer.json"] = to_json(tokenizer)
            ledger.origins["tokenizer.json"] = "both"
            ledger.note("tokenizer.json", f"flags of post: {', '.join(sorted(moved)[:8])}")
    config = read_object(files.get(CONFIG))
    if config is not None and _flag_config(config, changed, ids):
        files[CONFIG] = to_json(config)
        ledger.origins[CONFIG] = "both"
        ledger.note(CONFIG, "flags of added tokens of post")


def _all_flags(
    files: Mapping[str, bytes], reader: Reader, other: Mapping[str, bytes]
) -> dict[str, Flags]:
    """Flags by token, from both documents that hold them; nothing where both sides agree."""
    flags: dict[str, Flags] = {}
    if files.get(CONFIG) != other.get(CONFIG):
        flags |= added_tokens_decoder(read_object(files.get(CONFIG)) or {})
    tokenizer = files.get("tokenizer.json")
    if tokenizer is not None and tokenizer != other.get("tokenizer.json"):
        found = reader.vocabulary(tokenizer)
        flags |= found.flags if found is not None else {}
    return flags


def _flag_tokenizer(
    document: dict[str, Any], changed: Mapping[str, Flags], moved: set[str]
) -> dict[str, int]:
    """Set flags in a ``tokenizer.json``; the ids of tokens that were in its vocabulary alone."""
    rows = document.get("added_tokens")
    if not isinstance(rows, list):
        rows = []
    there = set()
    for row in rows:
        token = row.get("content") if isinstance(row, dict) else None
        if isinstance(token, str) and token in changed:
            there.add(token)
            if any(row.get(name) != value for name, value in changed[token].items()):
                row |= changed[token]
                moved.add(token)
    model = document.get("model")
    ids = _ids(model.get("vocab") if isinstance(model, dict) else None, set(changed) - there)
    for token, number in ids.items():
        rows.append({"id": number, "content": token, **_PLAIN} | changed[token])
        moved.add(token)
    if ids:
        # transformers goes by their order, and each has an id but in files that are broken anyway.
        document["added_tokens"] = sorted(rows, key=_row_id)
    return ids


def _row_id(row: Any) -> int:
    number = row.get("id") if isinstance(row, dict) else None
    return number if isinstance(number, int) else 0


def _ids(vocabulary: Any, tokens: set[str]) -> dict[str, int]:
    """The ids of tokens in a model's vocabulary."""
    if isinstance(vocabulary, dict):
        found = {token: vocabulary[token] for token in sorted(tokens) if token in vocabulary}
        return {token: number for token, number in found.items() if isinstance(number, int)}
    if isinstance(vocabulary, list):
        return {
            row[0]: number
            for number, row in enumerate(vocabulary)
            if isinstance(row, list) and row and isinstance(row[0], str) and row[0] in tokens
        }
    return {}


def _flag_config(
    document: dict[str, Any], changed: Mapping[str, Flags], ids: Mapping[str, int]
) -> bool:
    """Set flags in a ``tokenizer_config.json``; whether any was another."""
    table = document.get("added_tokens_decoder")
    if not isinstance(table, dict):
        return False
    moved = False
    for row in table.values():
        token = row.get("content") if isinstance(row, dict) else None
        if isinstance(token, str) and token in changed:
            moved |= any(row.get(name) != value for name, value in changed[token].items())
            row |= changed[token]
    for token, number in ids.items():
        if str(number) not in table:
            table[str(number)] = {"content": token, **_PLAIN} | changed[token]
            moved = True
    return moved


def _tell_left(
    files: Mapping[str, bytes],
    source_base: Mapping[str, bytes],
    post: Mapping[str, bytes],
    ledger: Ledger,
) -> None:
    """Say what post changed of its base's tokenizer, and what the output has otherwise.

    Which tokens a text becomes may hang on it: whether it begins with a special one, for example.
    """
    if not has_tokenizer(source_base):
        return  # the same as post's, or there is none to compare with
    for name in ("tokenizer.json", CONFIG):
        if post.get(name) == source_base.get(name):
            continue
        sides = [read_object(side.get(name)) for side in (source_base, post, files)]
        if None in sides:
            continue
        before, after, output = (side or {} for side in sides)
        fields = _STEPS if name != CONFIG else after.keys() - _RULED - special_tokens(after).keys()
        left = [
            field
            for field in sorted(fields)
            if not same(after.get(field), before.get(field))
            and not same(after.get(field), output.get(field))
        ]
        if left:
            ledger.warn(name, f"post changed {', '.join(left)}; the output has the new base's")
