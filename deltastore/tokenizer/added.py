"""A new base's tokenizer with the tokens that post has added or renamed."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from deltastore.checkpoint.documents import read_object, read_tokenizer, to_json
from deltastore.errors import TokenizerError
from deltastore.tokenizer.matching import Vocabulary
from deltastore.tokenizer.reading import MAX_TOKENS, read_listed, read_vocabulary

Files = dict[str, bytes]

_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def with_post_tokens(
    own: Mapping[str, bytes], post: Mapping[str, bytes], words: Vocabulary
) -> Files:
    """The new base's tokenizer files, with the tokens of post that the output has as well.

    Args:
        own: The new base's tokenizer files.
        post: Post's, which say how its tokens are to be recognised.
        words: How tokens were matched.

    Raises:
        TokenizerError: The files cannot say what is wanted.
    """
    files = dict(own)
    if not (words.added or words.renamed):
        return files
    new_ids = {token.content: token.id for token in words.added}
    flags = _flags(post)
    # Listed tokens that have a row keep their id; those without one come after the added ones.
    listed = read_listed(own, where="the new base")
    first = min(new_ids.values(), default=MAX_TOKENS)
    moved = {token for token, number in listed.items() if number >= first}
    if "tokenizer.json" in files:
        document = read_tokenizer(files["tokenizer.json"]) or {}
        entries = _entries(document)
        entries += _listed_entries(own, listed, leave=moved)
        _rename(document, entries, dict(words.renamed), flags)
        for token, number in new_ids.items():
            entries.append({"id": number, "content": token} | flags.get(token, _DEFAULT))
        document["added_tokens"] = entries
        files["tokenizer.json"] = to_json(document)
    elif words.renamed:
        raise _cannot("it has no tokenizer.json, in which tokens can be renamed")
    if "added_tokens.json" in files or "tokenizer.json" not in files:
        known = read_tokenizer(files.get("added_tokens.json", b"{}")) or {}
        files["added_tokens.json"] = to_json(known | new_ids)
    if "tokenizer_config.json" in files:
        files["tokenizer_config.json"] = _decoder(files["tokenizer_config.json"], words, flags)
    if "special_tokens_map.json" in files:
        files["special_tokens_map.json"] = _map(files["special_tokens_map.json"], words)
    before = read_vocabulary(own, where="the new base") or {}
    wanted = {token: n for token, n in before.items() if token not in moved} | new_ids
    for old, new in words.renamed:
        wanted[new] = wanted.pop(old)
    found = read_vocabulary(files, where="the output") or {}
    wrong = [token for token, number in wanted.items() if found.get(token) != number]
    if wrong:
        raise _cannot(f"{wrong[0]!r:.80} would get another id than its row")
    return files


def keep_listed(files: Files, own: Mapping[str, bytes], *, rows: int) -> bool:
    """Put into ``tokenizer.json`` what other files list beside it, if it would get other ids.

    That is where the files come to list other tokens.

    Args:
        files: The output's files; changed in place.
        own: The tokenizer before anything was changed.
        rows: How many rows the embeddings have; a token without one may get any id.

    Returns:
        Whether there was such a token.

    Raises:
        TokenizerError: The tokenizer cannot be read.
    """
    listed = read_listed(own, where="the new base")
    listed = {token: number for token, number in listed.items() if number < rows}
    document = read_tokenizer(files.get("tokenizer.json", b""))
    if document is None or listed.items() <= read_listed(files, where="the output").items():
        return False
    document["added_tokens"] = _entries(document) + _listed_entries(own, listed)
    files["tokenizer.json"] = to_json(document)
    return True


def _entries(document: Mapping[str, Any]) -> list[Any]:
    """The added tokens of a ``tokenizer.json``."""
    entries = document.get("added_tokens")
    return list(entries) if isinstance(entries, list) else []


def _listed_entries(
    own: Mapping[str, bytes], listed: Mapping[str, int], leave: Container[str] = ()
) -> list[dict[str, Any]]:
    """Entries for tokens that are only listed beside a ``tokenizer.json``, in order."""
    flags = _flags(own)
    return [
        {"id": number, "content": token} | flags.get(token, _DEFAULT)
        for token, number in sorted(listed.items(), key=lambda item: item[1])
        if token not in leave
    ]


_DEFAULT: dict[str, Any] = _FLAGS | {"special": True}


def _flags(post: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """How post recognises its added tokens, by string."""
    keys = (*_FLAGS, "special")
    found: dict[str, dict[str, Any]] = {}
    tokenizer = read_tokenizer(post.get("tokenizer.json", b"")) or {}
    config = read_object(post.get("tokenizer_config.json", b"")) or {}
    decoder = config.get("added_tokens_decoder")
    lists = [
        tokenizer.get("added_tokens"),
        list(decoder.values()) if isinstance(decoder, dict) else None,
    ]
    for entries in lists:
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and isinstance(entry.get("content"), str):
                own = {key: entry[key] for key in keys if isinstance(entry.get(key), bool)}
                found.setdefault(entry["content"], _DEFAULT | own)
    return found


def _rename(
    document: dict[str, Any],
    entries: list[Any],
    renamed: Mapping[str, str],
    flags: Mapping[str, dict[str, Any]],
) -> None:
    """Give tokens their new strings where ``tokenizer.json`` lists or counts them."""
    _rename_entries(entries, renamed, flags)
    model = document.get("model")
    if not isinstance(model, dict):
        return
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {renamed.get(token, token): n for token, n in vocabulary.items()}
    elif isinstance(vocabulary, list):
        for piece in vocabulary:
            if isinstance(piece, list) and piece and isinstance(piece[0], str):
                piece[0] = renamed.get(piece[0], piece[0])
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = renamed.get(model["unk_token"], model["unk_token"])


def _rename_entries(
    entries: Iterable[Any], renamed: Mapping[str, str], flags: Mapping[str, dict[str, Any]]
) -> None:
    for entry in entries:
        content = entry.get("content") if isinstance(entry, dict) else None
        if isinstance(content, str) and content in renamed:
            entry["content"] = renamed[content]
            entry |= flags.get(renamed[content], {})


def _decoder(data: bytes, words: Vocabulary, flags: Mapping[str, dict[str, Any]]) -> bytes:
    """``tokenizer_config.json`` with the tokens' new names, and the added in its list."""
    config = read_object(data)
    if config is None:
        return data
    changed = _rename_roles(config, dict(words.renamed))
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        _rename_entries(decoder.values(), dict(words.renamed), flags)
        displaced = [decoder.pop(str(token.id), None) for token in words.added]
        for token in words.added:
            decoder[str(token.id)] = {"content": token.content} | flags.get(token.content, _DEFAULT)
        free = max((int(n) for n in decoder if n.isascii() and n.isdigit()), default=-1) + 1
        for number, entry in enumerate((entry for entry in displaced if entry is not None), free):
            decoder[str(number)] = entry
        changed = True
    return to_json(config) if changed else data


def _map(data: bytes, words: Vocabulary) -> bytes:
    """``special_tokens_map.json`` with the tokens' new names."""
    document = read_object(data)
    if document is None or not _rename_roles(document, dict(words.renamed)):
        return data
    return to_json(document)


def _rename_roles(document: dict[str, Any], renamed: Mapping[str, str]) -> bool:
    """Name special tokens anew, by role and in lists: a reader would add an old name as a token.

    Returns whether there was any.
    """
    changed = False
    for key, value in document.items():
        if key.endswith(("_token", "_tokens")):
            document[key] = _renamed_value(value, renamed)
            changed |= document[key] != value
    return changed


def _renamed_value(value: Any, renamed: Mapping[str, str]) -> Any:
    """A token, a token with flags, or several of them: in a list, or by name."""
    if isinstance(value, str):
        return renamed.get(value, value)
    if isinstance(value, list):
        return [_renamed_value(item, renamed) for item in value]
    if isinstance(value, dict):
        return {name: _renamed_value(item, renamed) for name, item in value.items()}
    return value


def _cannot(why: str) -> TokenizerError:
    return TokenizerError(
        f"The new base's tokenizer cannot take post's tokens: {why}.",
        hint="Leave embeddings and head as they are: `--skip-embeddings`.",
    )
