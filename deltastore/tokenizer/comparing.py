"""How the tokens of a delta stand to those of a new base, from the tokenizers of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from deltastore.checkpoint import TensorInfo
from deltastore.checkpoint.documents import read_object
from deltastore.errors import MissingExtraError, TokenizerError
from deltastore.manifest import TensorEntry
from deltastore.tensor_names.token_rows import has_token_rows, stored_embedding_of
from deltastore.tokenizer.listed_tokens import listed_tokens
from deltastore.tokenizer.matching import Vocabulary, match_tokens
from deltastore.tokenizer.reading import read_vocabulary
from deltastore.tokenizer.rows import NONE

Files = Mapping[str, bytes]
T = TypeVar("T")

_NO_TOKENS = ("tokenizer_config.json", "special_tokens_map.json", "merges.txt")


def compare_tokens(
    own: Files,
    source: Files,
    post: Files,
    *,
    new: Mapping[str, TensorInfo],
    delta: Mapping[str, TensorEntry],
    where: str,
    ref: str,
) -> Vocabulary:
    """How the tokens of a delta stand to those of a new base.

    Tokenizers are read only where their files or the tensors' shapes differ.

    Args:
        own: The tokenizer of the new base.
        source: That of the source base.
        post: That of post.
        new: The new base's tensors.
        delta: The delta's, by the new base's names.
        where: What to call the new base in an error.
        ref: What to call the delta there.

    Raises:
        TokenizerError: A tokenizer that is needed cannot be read.
        MissingExtraError: It needs a library that is not installed.
    """
    embedding, ours = stored_embedding_of(delta), stored_embedding_of(new)
    if not own or not source or not comparable_tokens(own, source):
        return Vocabulary("not compared")
    if embedding is None or ours is None:
        return Vocabulary("not compared", unlike=_unlike(own, source))
    entry = delta[embedding]
    if entry.base is None or entry.post is None:
        return Vocabulary("not compared")
    if not all(side.shape for side in (entry.base, entry.post, new[ours])):
        return Vocabulary("not compared")
    alike = _same_rows(new, delta)
    if alike and _defining(own) == _defining(source):
        return Vocabulary("same")
    new_rows, post_rows = new[ours].shape[0], entry.post.shape[0]
    now = read_vocabulary(own, where=where, rows=new_rows)
    before = read_vocabulary(source, where=f"the base of {ref}", rows=entry.base.shape[0])
    after = read_vocabulary(post, where=f"the post of {ref}", rows=post_rows)
    if now is None or before is None or after is None:
        return Vocabulary("not compared")
    if alike and now == before:
        return Vocabulary("same", tokens=len(now))
    return match_tokens(
        before,
        after,
        now,
        common=min(entry.base.shape[0], entry.post.shape[0]),
        post_rows=post_rows,
        new_rows=new_rows,
    )


def skip_tokens(own: Files, post: Files, *, where: str, ref: str) -> Vocabulary:
    """What is known of tokens where their rows are left as they are: ids of equal strings.

    Args:
        own: The tokenizer of the new base.
        post: That of post.
        where: What to call the new base in an error.
        ref: What to call the delta there.
    """
    try:
        new = read_vocabulary(own, where=where)
        after = read_vocabulary(post, where=f"the post of {ref}")
    except (TokenizerError, MissingExtraError):
        # To get by without tokenizers is what skipping is for.
        new = after = None
    if new is None or after is None:
        # Also where neither has one, as where rows go by index.
        return Vocabulary("skipped", alike=_defining(own) == _defining(post))
    found = {number: new.get(token, NONE) for token, number in after.items()}
    return Vocabulary("skipped", tokens=len(new), ids=found)


def _same_rows(new: Mapping[str, TensorInfo], delta: Mapping[str, TensorEntry]) -> bool:
    """Whether every tensor with a row for each token has as many rows as in the source base."""
    for name, entry in delta.items():
        info = new.get(name)
        if info is None or entry.base is None or not has_token_rows(name):
            continue
        if info.shape != entry.base.shape:
            return False
    return True


def _unlike(first: Mapping[str, bytes], second: Mapping[str, bytes]) -> bool:
    """Whether two tokenizers number tokens otherwise, as far as can be read."""
    if defining(first) != defining(second):
        return True
    if _defining(first) == _defining(second):
        return False
    try:
        return read_vocabulary(first, where="") != read_vocabulary(second, where="")
    except (TokenizerError, MissingExtraError):
        return True


def _defining(tokenizer: Mapping[str, bytes]) -> list[object]:
    """What gives tokens their ids, to be compared."""
    if "tokenizer.json" in tokenizer:
        return [defining(tokenizer), listed_tokens(tokenizer)]
    config = read_object(tokenizer.get("tokenizer_config.json", b"")) or {}
    return [defining(tokenizer), config.get("added_tokens_decoder")]


def comparable_tokens(first: Mapping[str, T], second: Mapping[str, T]) -> bool:
    """Whether both tokenizers, or neither, have a file that gives tokens their ids.

    An artifact of an older version lacks the files of some families.
    """
    return bool(defining(first)) == bool(defining(second))


def defining(tokenizer: Mapping[str, T]) -> dict[str, T]:
    """The files of a tokenizer, or their digests, that give tokens their ids.

    But for what other files list beside a ``tokenizer.json``.
    """
    if "tokenizer.json" in tokenizer:
        return {"tokenizer.json": tokenizer["tokenizer.json"]}
    return {name: file for name, file in tokenizer.items() if name not in _NO_TOKENS}
