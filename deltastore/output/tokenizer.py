"""The tokenizer of an output: the new base's or post's, and post's special tokens in either."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from deltastore.artifact.sides import Sides
from deltastore.artifact.small_files import tokenizer_of
from deltastore.checkpoint.documents import read_object, read_tokenizer, same, to_json
from deltastore.errors import DeltaConflictError, MissingExtraError, TokenizerError
from deltastore.output.configuration.config import OF_THE_FILE
from deltastore.output.ledger import Ledger, joined, quoted
from deltastore.output.token_flags import take_flags
from deltastore.tokenizer.added import keep_listed, with_post_tokens
from deltastore.tokenizer.files import Reader, holds_token
from deltastore.tokenizer.listed_tokens import listed_tokens
from deltastore.tokenizer.reading import read_listed, read_vocabulary

Files = dict[str, bytes]

CONFIG = "tokenizer_config.json"
MAP = "special_tokens_map.json"
_LISTS = ("additional_special_tokens", "extra_special_tokens")
"""Two names for the same: the second since transformers 5, as a list or by name."""

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
    rows: int = 0,
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
        rows: Rows of the output's embeddings; 0 if it is not known which these are.
        restoring: The new base is the source base, as far as is known, and the output post.

    Raises:
        DeltaConflictError: Several deltas add tokens, and not the same.
        TokenizerError: The new base's tokenizer cannot take tokens that post added.
    """
    reader = Reader()
    _refuse_conflict(deltas, reader, rows)
    source_base, post = deltas[-1].base, deltas[-1].post
    own = tokenizer_of(files)
    for delta in deltas:
        if delta.words.verdict == "matched":
            for name, data in with_post_tokens(own, delta.post, delta.words).items():
                if own.get(name) != data:
                    own[name] = files[name] = data
                    ledger.origins[name] = "both"
    # Rows are post's by index only where none went by token, and the embeddings are not left out.
    by_index = all(delta.words.verdict not in ("matched", "skipped") for delta in deltas)
    added = [d for d in deltas if by_index and post_added_tokens(d.base, d.post, reader, rows)]
    if added and deltas[-1] not in added:
        source_base, post = added[-1].base, added[-1].post
    fewer = by_index and fewer_rows and bool(tokenizer_of(post))
    restored = restoring and own == tokenizer_of(source_base) and bool(tokenizer_of(post))
    if added or fewer or restored or not tokenizer_of(files):
        for name in tokenizer_of(files):
            del files[name]
            ledger.origins.pop(name, None)
        for name, data in tokenizer_of(post).items():
            files[name] = data
            ledger.origins[name] = "post"
        return
    beside = _beside(own, reader)
    _take_special_tokens(files, post, reader, ledger, beside)
    take_flags(files, source_base, post, reader, ledger)
    if beside and tokenizer_of(files) != own and keep_listed(files, own, rows=rows):
        ledger.origins["tokenizer.json"] = "both"
    _tell_left(files, source_base, post, ledger)


def _refuse_conflict(deltas: Sequence[Sides], reader: Reader, rows: int) -> None:
    """Two deltas that add tokens would do so in one row, and one tokenizer would be dropped."""
    if len(deltas) < 2:
        return
    by_token = any(delta.words.verdict == "matched" for delta in deltas)
    adding = [i for i, delta in enumerate(deltas) if _adds(delta, reader, rows)]
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


def _adds(delta: Sides, reader: Reader, rows: int) -> bool:
    """Whether post has tokens that its base has not, and the output is to have them."""
    if delta.words.verdict == "matched":
        return bool(delta.words.added or delta.words.renamed)
    return delta.words.verdict == "same" and post_added_tokens(delta.base, delta.post, reader, rows)


def _vocabulary(files: Mapping[str, bytes]) -> dict[str, int] | None:
    try:
        return read_vocabulary(files, where="post")
    except (TokenizerError, MissingExtraError):
        return None


def post_added_tokens(
    source_base: Mapping[str, bytes], post: Mapping[str, bytes], reader: Reader, rows: int = 0
) -> bool:
    """Whether post's vocabulary holds tokens that its base's did not.

    Files that cannot be compared token by token count as extended if they differ at all. Tokens
    that are only listed beside a ``tokenizer.json`` count if the ``rows`` have one for them.
    """
    if not tokenizer_of(source_base):
        return False  # the same as post's, or there is none to compare with
    known, wanted = set(_beside(source_base, reader)), set()
    if not known.issuperset(_beside(post, reader)):
        wanted = {token for token, number in _listed(post).items() if number < rows}
    common = []
    for name in tokenizer_of(post):
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


def _listed(files: Mapping[str, bytes]) -> dict[str, int]:
    try:
        return read_listed(files, where="post")
    except TokenizerError:
        return {}


def _beside(files: Mapping[str, bytes], reader: Reader) -> list[str]:
    """The tokens that other files list beside a ``tokenizer.json``, which lacks them."""
    tokenizer = files.get("tokenizer.json")
    if tokenizer is None:
        return []
    return [t for t in listed_tokens(files) if not holds_token(tokenizer, t, reader)]


def special_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens that a document names: by role, and those without one."""
    return {
        name: value
        for name, value in config.items()
        if name in _LISTS
        or (name.endswith("_token") and (value is None or _contents(value) is not None))
    }


def _take_special_tokens(
    files: Files,
    post: Mapping[str, bytes],
    reader: Reader,
    ledger: Ledger,
    beside: Container[str],
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

    def has(token: str) -> bool:
        return tokenizer is None or token in beside or holds_token(tokenizer, token, reader)

    lost: list[str] = []
    for name, value in list(wanted.items()):
        kept = _known(value, has, lost)
        if kept is None and value is not None:
            del wanted[name]
        else:
            wanted[name] = kept
    if lost:
        tokens = list(dict.fromkeys(lost))
        several = "s" if len(tokens) > 1 else ""
        ledger.warn(
            CONFIG,
            f"the new base's tokenizer lacks post's special token{several} {quoted(tokens)}",
        )
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
        ledger.note(name, f"special tokens of post: {joined(changed)}")


def _known(value: Any, has: Callable[[str], bool], lost: list[str]) -> Any:
    """A special token, or several, without those that the new base's tokenizer lacks."""
    contents = _contents(value)
    if contents is not None:
        if has(contents):
            return value
        lost.append(contents)
        return None
    if isinstance(value, list):
        found = [_known(item, has, lost) for item in value]
        return [item for item in found if item is not None]
    if isinstance(value, dict):
        kept = {name: _known(item, has, lost) for name, item in value.items()}
        return {name: item for name, item in kept.items() if item is not None}
    return value


def _contents(value: Any) -> str | None:
    """The text of a token, which may be a document of its own with flags; None if it is none."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _compared(name: str, data: bytes | None) -> dict[str, Any] | None:
    """What of a document is compared: of one with a vocabulary only the steps."""
    if name == CONFIG:
        return read_object(data)
    document = read_tokenizer(data)
    if document is None:
        return None
    return {step: document[step] for step in _STEPS if step in document}


def _tell_left(
    files: Mapping[str, bytes],
    source_base: Mapping[str, bytes],
    post: Mapping[str, bytes],
    ledger: Ledger,
) -> None:
    """Say what post changed of its base's tokenizer, and what the output has otherwise.

    Which tokens a text becomes may hang on it: whether it begins with a special one, for example.
    """
    if not tokenizer_of(source_base):
        return  # the same as post's, or there is none to compare with
    for name in ("tokenizer.json", CONFIG):
        if post.get(name) == source_base.get(name):
            continue
        sides = [_compared(name, side.get(name)) for side in (source_base, post, files)]
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
            ledger.warn(name, f"post changed {joined(left)}; the output has the new base's")
