"""``generation_config.json`` of an output: post's, in ids of the output."""

from __future__ import annotations

from collections.abc import Mapping

from deltastore.checkpoint.documents import read_object, same, to_json
from deltastore.output.configuration.config import Configs, Document, lost_ids
from deltastore.output.configuration.ids import Translate, holds_ids, identity, translated
from deltastore.output.ledger import Ledger, joined

NAME = "generation_config.json"


def take_generation_config(
    files: dict[str, bytes],
    post: Mapping[str, bytes],
    configs: Configs,
    ledger: Ledger,
    translate: Translate = identity,
) -> None:
    """Post's, whole; where post has none, the new base's with the ids that post changed.

    Nothing is made up: where neither has one, ``generate`` goes by ``config.json``, which follows
    post in the same ids.

    Args:
        files: The output's files, with those of the new base; changed in place.
        post: Post's small files.
        configs: The configurations of source base and post.
        ledger: Is told whose it is.
        translate: Ids of post as ids of the output.
    """
    own, data = files.get(NAME), post.get(NAME)
    if data is not None:
        document = read_object(data)
        if document is not None:
            files[NAME] = _posts(document, data, read_object(own) or {}, ledger, translate)
            return
        ledger.warn(NAME, "post's is not understood, and left out")
    document = read_object(own)
    if own is None or document is None:
        return
    changed = _with_ids(document, configs.ids_of_post(), ledger, translate)
    if changed:
        files[NAME] = to_json(document)
        ledger.origins[NAME] = "both"
        ledger.note(NAME, f"of post's config.json: {joined(changed)}")


def _posts(
    document: Document, data: bytes, own: Document, ledger: Ledger, translate: Translate
) -> bytes:
    """Post's document in ids of the output; the same bytes where none of them changes."""
    ledger.origins[NAME] = "post"
    output = dict(document)
    for name, value in document.items():
        if not holds_ids(name):
            continue
        moved = translated(name, value, translate)
        if moved.lost:
            kept = moved.gone and name in own
            ledger.warn(NAME, lost_ids(name, moved.lost, kept=kept))
        if not moved.gone:
            output[name] = moved.value
        elif name in own:
            output[name] = own[name]
            ledger.origins[NAME] = "both"
        else:
            del output[name]
    # Training turns the cache off, and saves that with the model.
    if output.get("use_cache") is False and own.get("use_cache") is not False:
        output["use_cache"] = True
        ledger.note(NAME, "use_cache as before training")
    if same(output, document):
        return data
    return to_json(output)


def _with_ids(document: Document, ids: Document, ledger: Ledger, translate: Translate) -> list[str]:
    """Put ids of post's ``config.json`` into ``document``; the fields that changed."""
    changed = []
    for name, value in ids.items():
        moved = translated(name, value, translate)
        if not moved.gone and not same(document.get(name), moved.value):
            document[name] = moved.value
            changed.append(name)
        elif moved.lost:
            ledger.warn(NAME, lost_ids(name, moved.lost, kept=True))
    return changed
