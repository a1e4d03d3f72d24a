"""Chat templates, in each of the places where transformers looks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltastore.checkpoint import is_template_file
from deltastore.checkpoint.documents import read_object, to_json
from deltastore.output.ledger import Ledger, quoted
from deltastore.tokenizer.files import Reader, added_tokens_decoder, holds_token

_KEY = "chat_template"
_HOLDERS = ("tokenizer_config.json", "processor_config.json")
"""Documents with a template in them: one as a string, or a list of named ones."""


def has_chat_template(files: Mapping[str, bytes]) -> bool:
    """Whether there is one, in any form."""
    return any(map(is_template_file, files)) or any(_embedded(files, name) for name in _HOLDERS)


def take_chat_template(files: dict[str, bytes], post: Mapping[str, bytes], ledger: Ledger) -> None:
    """Post's chat templates in whatever form post has them; none of the new base's beside them.

    transformers prefers a ``.jinja`` file to ``tokenizer_config.json``, and the template in
    ``processor_config.json`` to both: one of the new base's left anywhere might win. Where post has
    none, those of the new base stay.

    Args:
        files: The output's files; changed in place.
        post: Post's small files.
        ledger: Is told whose template it is.
    """
    names = [name for name in post if is_template_file(name)]
    embedded = {name: template for name in _HOLDERS if (template := _embedded(post, name))}
    if not names and not embedded:
        return
    for name in [name for name in files if is_template_file(name)]:
        del files[name]
        ledger.origins.pop(name, None)
    for name in names:
        files[name] = post[name]
        ledger.origins[name] = "post"
    for name in _HOLDERS:
        _put(files, name, embedded.get(name), ledger)
    texts = {name: post[name].decode("utf-8", "replace") for name in names}
    texts |= {name: "\n".join(_strings(template)) for name, template in embedded.items()}
    _tell_missing(files, post, texts, ledger)


def _embedded(files: Mapping[str, bytes], name: str) -> Any:
    """The template in a document; nothing where it is absent or empty."""
    return (read_object(files.get(name)) or {}).get(_KEY)


def _put(files: dict[str, bytes], name: str, template: Any, ledger: Ledger) -> None:
    """Have the document ``name`` hold just this template, or none."""
    document = read_object(files.get(name))
    if document is None:
        if template is None:
            return
        if name in files:
            ledger.warn(name, "the new base's is not understood: without post's chat template")
            return
        files[name] = to_json({_KEY: template})
        ledger.origins[name] = "post"
        return
    if (document.get(_KEY) or None) == template:
        return
    if template is None:
        del document[_KEY]
    else:
        document[_KEY] = template
    files[name] = to_json(document)
    if ledger.origins.get(name) == "new base" and template is not None:
        ledger.origins[name] = "both"
    if ledger.origins.get(name) != "post":
        whose = "post's" if template is not None else "none, as post has its own elsewhere"
        ledger.note(name, f"chat template: {whose}")


def _strings(value: Any) -> list[str]:
    """All strings in a value: a template, or several with their names."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, (dict, list)):
        return []
    items = value.values() if isinstance(value, dict) else value
    return [text for item in items for text in _strings(item)]


def _tell_missing(
    files: Mapping[str, bytes], post: Mapping[str, bytes], texts: Mapping[str, str], ledger: Ledger
) -> None:
    """Say which added tokens of post are in its templates, and in pieces to the output."""
    own, theirs = files.get("tokenizer.json"), post.get("tokenizer.json")
    if own is None or own == theirs:
        return
    reader = Reader()
    found = reader.vocabulary(theirs) if theirs is not None else None
    config = read_object(post.get("tokenizer_config.json")) or {}
    added = added_tokens_decoder(config) | (found.flags if found is not None else {})
    for name, text in texts.items():
        missing = [
            token
            for token in added
            if token.strip() and token in text and not holds_token(own, token, reader)
        ]
        if missing:
            ledger.warn(
                name,
                f"post's chat template has tokens that the output's tokenizer lacks "
                f"({quoted(missing)}): they are read as other text",
            )
