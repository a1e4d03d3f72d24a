"""The small files of an output checkpoint, so that it is complete and loads.

* ``config.json`` is the new base's (its rope and context length are its own), with what
  post-training rightly changes in it: ``output/config.py``.
* The tokenizer is the new base's, unless post has tokens that its base lacked; special tokens are
  post's: ``output/tokenizer.py``.
* What has no rule of its own, as the modules of sentence-transformers, follows post where post
  changed it: ``output/model_files.py``.
* Generation config and chat template are post's: ``output/generation.py``, ``output/template.py``.
* ``deltastore.json`` says what was applied to what; ``README.md`` says it to people:
  ``output/card.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from deltastore._version import __version__
from deltastore.artifact.sides import Sides
from deltastore.artifact.small_files import read_all
from deltastore.checkpoint import Checkpoint, is_legal, is_model_file, is_tokenizer_file
from deltastore.checkpoint.documents import to_visible_json
from deltastore.checkpoint.small_files import MAX_CONFIG_JSON_BYTES
from deltastore.errors import CheckpointError
from deltastore.execution.progress import Progress
from deltastore.manifest.format import MAX_SMALL_FILE_BYTES, MAX_SMALL_FILES_BYTES
from deltastore.merging.inputs import DeltaInput
from deltastore.merging.plan import MergePlan
from deltastore.merging.recipes import Recipe
from deltastore.output import card as cards
from deltastore.output import licences, template, tokenizer
from deltastore.output.configuration import config, generation
from deltastore.output.configuration.model_files import (
    fit_params,
    take_model_files,
    take_processors,
    without_code,
)
from deltastore.output.configuration.tying import head_is_embeddings
from deltastore.output.front_matter import FrontMatterError, read_front_matter
from deltastore.output.ledger import Ledger
from deltastore.tensor_names.selectors import Scales
from deltastore.tensor_names.token_rows import stored_embedding_of
from deltastore.tokenizer.matching import Vocabulary

Files = dict[str, bytes]

PROVENANCE = "deltastore.json"
PROVENANCE_BYTES = 1 << 20
"""Room that is kept for it, before it is known."""

TOOL = f"deltastore {__version__}"

_TOO_LARGE = "See which files of the artifact are large: `deltastore show REF`."


@dataclass(slots=True)
class Composed:
    """The small files of an output, and what there is to say of them.

    Attributes:
        files: By name; without provenance and card until ``complete``.
        ledger: Whose each is, what was decided and left.
        cards: The metadata of the cards of the new base and of each post, in order.
    """

    files: Files
    ledger: Ledger = field(default_factory=Ledger)
    cards: list[dict[str, Any]] = field(default_factory=list)


def small_files(
    plan: MergePlan, base: Checkpoint, inputs: Sequence[DeltaInput], progress: Progress
) -> tuple[MergePlan, Files]:
    """The plan with the output's small files decided, and these files, but for provenance.

    Args:
        plan: What is to be done.
        base: The new base.
        inputs: The plan's deltas.
        progress: Is told what a user must see.

    Raises:
        As ``compose``.
    """
    scales = Scales([delta.scale for delta in plan.deltas], plan.scale_for)
    deltas = [
        _sides(one, live=any(scales(name, number) for name in one.places))
        for number, one in enumerate(inputs)
    ]
    composed = compose(base, deltas, plan.tensors, restoring=plan.restoring)
    for warning in composed.ledger.warnings:
        progress.warn(warning)
    files = composed.files | {cards.NAME: card(plan, composed.cards)}
    return plan.with_files(files, composed.ledger.report(), composed.ledger.left()), files


def compose(
    base: Checkpoint,
    deltas: Sequence[Sides],
    recipes: Mapping[str, Recipe],
    *,
    restoring: bool = False,
) -> Composed:
    """The small files of the output, but for provenance and card.

    Args:
        base: The new base.
        deltas: Each artifact's small files of its source base (config, and the tokenizer if post's
            differs) and of post, and how its tokens are matched. The last one's config, special
            tokens, template and generation config win; the licences of all hold.
        recipes: The output's tensors.
        restoring: The new base is the source base, as far as is known, and the output post.

    Raises:
        DeltaConflictError: Several deltas add tokens, and not the same.
        StructureMismatchError: config.json cannot be made to fit the output's tensors.
        TokenizerError: The new base's tokenizer cannot take tokens that post added.
        CheckpointError: A file of the new base cannot be read or is too large.
    """
    source_base, post = deltas[-1].base, deltas[-1].post
    translate = deltas[-1].words.translate
    own = read_all(base)
    files = {name: data for name, data in own.items() if name != cards.NAME}
    ledger = Ledger(origins=dict.fromkeys(files, "new base"))
    configs = config.Configs.read(source_base, post, restoring=restoring)
    fewer = config.has_fewer_rows(own.get(config.NAME, b""), recipes)
    embedding = stored_embedding_of(recipes)
    rows = (recipes[embedding].output.shape or (0,))[0] if embedding is not None else 0
    tokenizer.take_tokenizer(
        files, deltas, ledger, fewer_rows=fewer, rows=rows, restoring=restoring
    )
    take_processors(files, post, ledger, restoring=restoring)
    take_model_files(files, source_base, post, ledger, restoring=restoring)
    if not restoring:
        fit_params(files, source_base, post, ledger, base.tensors, recipes, deltas[-1].tensors)
    template.take_chat_template(files, post, ledger)
    if not template.has_chat_template(post):
        for number, delta in enumerate(deltas[:-1], 1):
            if template.has_chat_template(delta.post):
                ledger.warn(
                    "chat template", f"that of delta {number} is left out: the last delta counts"
                )
    generation.take_generation_config(files, post, configs, ledger, translate)
    for delta in deltas:
        for name, data in delta.post.items():
            if is_legal(name):
                licences.add_legal(files, name, data, ledger)
    if config.NAME in files:
        pairs = [config.pair(delta.base, delta.post, delta.tensors) for delta in deltas]
        files[config.NAME] = config.model_config(
            files[config.NAME],
            configs,
            base.tensors,
            recipes,
            ledger,
            translate,
            pairs,
            one=head_is_embeddings(base, recipes),
        )
    without_code(files, own, ledger)
    _check_sizes(files)
    sides = [("the new base's card", own), *(("post's card", delta.post) for delta in deltas)]
    metadata = [_metadata(label, side, ledger) for label, side in sides]
    ledger.origins |= {PROVENANCE: "written", cards.NAME: "written"}
    return Composed(files, ledger, metadata)


def _sides(one: DeltaInput, *, live: bool) -> Sides:
    """A delta's small files; where α is 0 throughout, without tokenizer and model files."""
    tensors = {one.delta.named(entry): entry for entry in one.config.tensors}
    tensors |= {name: place.entry for name, place in one.places.items()}
    if live:
        words = one.delta.vocabulary or Vocabulary("not compared")
        return replace(one.files, words=words, tensors=tensors)
    base, post = (
        {n: data for n, data in side.items() if not (is_tokenizer_file(n) or is_model_file(n))}
        for side in (one.files.base, one.files.post)
    )
    return Sides(base, post, tensors=tensors)


def _check_sizes(files: Files) -> None:
    """Refuse small files that would be too large to be read again.

    Raises:
        CheckpointError: One of them is, or all together are.
    """
    for name, data in files.items():
        limit = MAX_CONFIG_JSON_BYTES if name == config.NAME else MAX_SMALL_FILE_BYTES
        if len(data) > limit:
            raise CheckpointError(
                f"The output's {name} would have {len(data)} bytes; a reader takes {limit}.",
                hint=_TOO_LARGE,
            )
    total = sum(map(len, files.values()))
    if total > MAX_SMALL_FILES_BYTES:
        raise CheckpointError(
            f"The output's small files would have {total} bytes together; a reader takes "
            f"{MAX_SMALL_FILES_BYTES}.",
            hint=_TOO_LARGE,
        )


def provenance(plan: MergePlan, *, restored: bool) -> bytes:
    """``deltastore.json``: refs, digests, scales, lineage figures, what was left out, tool."""
    document = {
        "format": 1,
        "tool": TOOL,
        "method": {"name": plan.method.name, "params": dict(plan.method.params)},
        "formula": plan.method.formula,
        "base": plan.base.report(),
        "deltas": [delta.details() for delta in plan.deltas],
        "scale_for": [asdict(rule) for rule in plan.scale_for],
        "skipped": list(plan.skipped),
        "vocabulary": plan.vocabulary(),
        "dtype": plan.dtype,
        "restored": restored,
        "left_out": {item.name: item.problem for item in plan.left_out} or None,
        "not_copied": list(plan.not_copied),
        "config_left": list(plan.config_left),
        "files": list(plan.files),
    }
    return to_visible_json(document)


def card(plan: MergePlan, metadata: Sequence[Mapping[str, Any]]) -> bytes:
    """``README.md`` with the Hub's metadata, that of all models that went in combined.

    Args:
        plan: What went in.
        metadata: That of the cards of the new base and of each post, as ``Composed.cards`` has it.
    """
    models = [(plan.base.label, plan.base.repo), *((d.post, d.post_repo) for d in plan.deltas)]
    sources = [
        cards.Source(label, repo, own) for (label, repo), own in zip(models, metadata, strict=True)
    ]
    deltas = [delta.details() for delta in plan.deltas]
    return cards.card(sources[0], sources[1:], deltas, plan.method, TOOL)


def _metadata(label: str, files: Mapping[str, bytes], ledger: Ledger) -> dict[str, Any]:
    """The metadata of a model's card; none where there is none that can be read."""
    try:
        return read_front_matter(files.get(cards.NAME, b""))
    except FrontMatterError as error:
        ledger.warn(cards.NAME, f"the metadata of {label} is not used: {error}")
        return {}
