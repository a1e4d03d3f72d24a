"""The token strings and ids of a tokenizer, whatever files it is kept in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from deltastore.checkpoint.small_files import is_tokenizer_file
from deltastore.errors import MissingExtraError, TokenizerError
from deltastore.manifest.format import MAX_JSON_MEMORY, MAX_TOKENIZER_MEMORY
from deltastore.manifest.strict_json import parse_loosely
from deltastore.tokenizer.listed_tokens import listed_tokens

MAX_TOKENS = 1 << 24
"""More tokens, or a higher id, than any tokenizer has."""

_MAX_DIGITS = 20

_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
"""What a ``tokenizer.json`` says of texts rather than of tokens."""

_WHITE_SPACE = "".join(
    chr(code) for code in range(0x3001) if chr(code).isspace() and not 0x1C <= code <= 0x1F
)
"""What Unicode calls white space, which does not count at the end of a line of ``vocab.txt``."""

NO_IDS = frozenset(
    {"added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"}
)
"""Files of a tokenizer that do not by themselves make one."""

_IN_OTHER_FORMS = frozenset({"bpe.codes"})
"""Files beside which a vocabulary has a form of its own, as PhoBERT's: ids are not its lines."""

_HINT = "Repair or replace the file, or leave embeddings and head as they are: `--skip-embeddings`."


def read_vocabulary(
    files: Mapping[str, bytes], *, where: str, rows: int | None = None
) -> dict[str, int] | None:
    """Ids by token string, added tokens included, as transformers would number them.

    Args:
        files: The tokenizer's files by name: ``tokenizer.json``, with what other files list
            beside it; or else ``vocab.json``, ``vocab.txt`` or a SentencePiece model, with
            ``added_tokens.json`` and the ``added_tokens_decoder`` of ``tokenizer_config.json``.
        where: What to call the checkpoint in an error.
        rows: How many rows the embeddings have; tokens that are only listed, and for which there
            is no row, are left out.

    Returns:
        None if there is no tokenizer among the files.

    Raises:
        TokenizerError: The files cannot be read, or are of a kind that is not known here.
        MissingExtraError: There is only a SentencePiece model, and its library is not installed.
    """
    if "tokenizer.json" in files:
        own, listed = _fast(files, where)
        counted = {token: n for token, n in listed.items() if rows is None or n < rows}
        return _checked(own | counted, "tokenizer.json", where)
    for name, read in _SLOW.items():
        if name in files and not _IN_OTHER_FORMS & files.keys():
            found = _checked(read(files[name], f"{name} of {where}"), name, where)
            return found | _added(files, where)
    kept = sorted(name for name in files if is_tokenizer_file(name) and name not in NO_IDS)
    if kept:
        raise TokenizerError(
            f"The tokenizer of {where} is kept in {', '.join(kept)} alone, whose token ids are "
            "not known here.",
            hint="Save it with transformers' fast tokenizer, which writes a tokenizer.json, or "
            "leave embeddings and head as they are: `--skip-embeddings`.",
        )
    return None


def read_listed(files: Mapping[str, bytes], *, where: str) -> dict[str, int]:
    """Of the ids those of tokens that ``tokenizer.json`` lacks and other files list beside it.

    Raises:
        TokenizerError: The file cannot be read.
    """
    return _fast(files, where)[1] if "tokenizer.json" in files else {}


def _fast(files: Mapping[str, bytes], where: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The ids of ``tokenizer.json``, and those of tokens that are added to it at loading."""
    from tokenizers import Tokenizer

    text = _without_steps(_json_object(files["tokenizer.json"], f"tokenizer.json of {where}"))
    try:
        tokenizer = Tokenizer.from_str(text)
        found = tokenizer.get_vocab(with_added_tokens=True)
        listed = listed_tokens(files, taken=tokenizer.get_added_tokens_decoder().keys())
        beside = [token for token in listed if token not in found]
        # The library numbers them as it does for transformers.
        tokenizer.add_tokens(beside)
        ids = {token: tokenizer.token_to_id(token) for token in beside}
        return found, {token: number for token, number in ids.items() if number is not None}
    except BaseException as error:
        # What the library does not foresee is a PanicException, which is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _unreadable(f"tokenizer.json of {where}", error) from error


def _without_steps(document: dict[str, Any]) -> str:
    """A ``tokenizer.json`` without what it says of texts.

    To load the steps of a tokenizer is to run them, on every added token: expressions take
    seconds each, and to compile one may take minutes. None of them gives a token its id.
    """
    return json.dumps(document | dict.fromkeys(_STEPS))


def _json_vocabulary(data: bytes, where: str) -> dict[str, Any]:
    return _json_object(data, where)


def _text_vocabulary(data: bytes, where: str) -> dict[str, Any]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _unreadable(where, error) from error
    # Only a line feed ends a line: tokens hold other characters at which `splitlines` parts.
    lines = text.removesuffix("\n").split("\n") if text else []
    return {line.rstrip(_WHITE_SPACE): number for number, line in enumerate(lines)}


def _sentencepiece(data: bytes, where: str) -> dict[str, Any]:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise MissingExtraError(
            f"{where} is a SentencePiece model, and the package sentencepiece is not installed.",
            hint="Install it: `pip install 'deltastore[sentencepiece]'`; or leave embeddings and "
            "head as they are: `--skip-embeddings`.",
        ) from error
    if not data:  # which the library takes for a model that is still to be loaded
        raise _unreadable(where, ValueError("it is empty"))
    try:
        model = SentencePieceProcessor(model_proto=data)
        return {model.id_to_piece(number): number for number in range(model.get_piece_size())}
    except Exception as error:
        raise _unreadable(where, error) from error


_SLOW = {
    "vocab.json": _json_vocabulary,
    "vocab.txt": _text_vocabulary,
    "tokenizer.model": _sentencepiece,
    "spiece.model": _sentencepiece,
}


def _added(files: Mapping[str, bytes], where: str) -> dict[str, int]:
    """Tokens that were added to a tokenizer without a ``tokenizer.json``.

    ``tokenizer_config.json`` counts where it lists them, and else ``added_tokens.json``.
    """
    found: dict[str, Any] = {}
    name = "tokenizer_config.json"
    if name in files:
        config = _json_object(files[name], f"{name} of {where}", memory=MAX_JSON_MEMORY)
        decoder = config.get("added_tokens_decoder")
        if isinstance(decoder, dict):
            for number, token in decoder.items():
                content = token.get("content") if isinstance(token, dict) else None
                if not isinstance(content, str):
                    raise TokenizerError(
                        f"{name} of {where} says of token {number!r:.40} no string that it "
                        "stands for.",
                        hint=_HINT,
                    )
                digits = number.isascii() and number.isdigit() and len(number) < _MAX_DIGITS
                found[content] = int(number) if digits else number
            return _checked(found, name, where)
    name = "added_tokens.json"
    if name in files:
        found = _json_object(files[name], f"{name} of {where}")
    return _checked(found, name, where)


def _json_object(data: bytes, where: str, *, memory: int = MAX_TOKENIZER_MEMORY) -> dict[str, Any]:
    try:
        document = parse_loosely(data, memory=memory)
    except ValueError as error:
        raise _unreadable(where, error) from error
    if not isinstance(document, dict):
        raise TokenizerError(f"{where} should be a JSON object.", hint=_HINT)
    return document


def _checked(found: Mapping[str, Any], name: str, where: str) -> dict[str, int]:
    """``found`` if it is ids by strings."""
    for token, number in found.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < MAX_TOKENS:
            raise TokenizerError(
                f"{name} of {where} gives token {token!r:.80} the id {number!r:.40}; expected an "
                f"integer from 0 to {MAX_TOKENS - 1}.",
                hint=_HINT,
            )
    return dict(found)


def _unreadable(what: str, error: BaseException) -> TokenizerError:
    return TokenizerError(f"{what} cannot be read as a tokenizer: {error!s:.200}.", hint=_HINT)


__all__ = ["MAX_TOKENS", "read_listed", "read_vocabulary"]
