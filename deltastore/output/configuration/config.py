"""``config.json`` of an output: the new base's, and what post-training rightly changes in it.

Three documents decide, field by field: the source base's, post's and the new base's. What post
changed of its own base *and* what belongs to post-training follows post; architecture, rope
and context length stay the new base's; sizes are the output's tensors' (``fit.py``).
``docs/compatibility.md`` has the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltastore.artifact.model_files import CODE_KEYS
from deltastore.checkpoint import TensorInfo
from deltastore.checkpoint.documents import brief, read_object, same, to_json
from deltastore.checkpoint.quantised import DECLARATIONS
from deltastore.manifest import TensorEntry
from deltastore.merging.recipes import Recipe
from deltastore.output.configuration.declared import leave_out_declarations
from deltastore.output.configuration.fit import Pair, fitted
from deltastore.output.configuration.ids import Translate, holds_ids, identity, translated
from deltastore.output.configuration.sizes import fields, kind_of_field
from deltastore.output.configuration.spellings import spelled_alike
from deltastore.output.configuration.tying import follow_tied_embeddings
from deltastore.output.ledger import Ledger, joined
from deltastore.text import excerpt

Document = dict[str, Any]

NAME = "config.json"
_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
_DTYPE_FIELDS = ("dtype", "torch_dtype")
_HEAD = ("architectures",)
_LABELS = ("id2label", "label2id", "num_labels", "problem_type")
_HEAD_PREFIXES = ("classifier_", "summary_")
"""Of the layers that make a head for classification, as BERT's and GPT-2's kin call them."""

_DECIDED = frozenset(
    {"use_cache", "vocab_size", "tie_word_embeddings", *_HEAD, *_LABELS, *_DTYPE_FIELDS}
)
"""Fields with a rule of their own."""

OF_THE_FILE = frozenset({"transformers_version", "_name_or_path", "name_or_path", "_commit_hash"})
"""Fields that say how the file was written, not what the model is."""

_NEVER = CODE_KEYS
"""Fields that name what lies beside the new base, as code; never post's."""

_RULED = _DECIDED | OF_THE_FILE | _NEVER | {"model_type", "quantization_config"}
"""What does not follow post for the sake of its tensors."""

_PARTS = ("encoder", "decoder", "generator")
"""Parts of a model whose configurations are called as they are, ``text_encoder`` among them."""

_MAX_LEVELS = 4


@dataclass(frozen=True, slots=True)
class Configs:
    """The configurations of source base and post; None where there is none.

    ``restoring``: the new base is the source base, as far as is known, and the output post. Then a
    field in which the new base's file still says what the source base's did follows post,
    whatever it is.
    """

    before: Document | None
    after: Document | None
    restoring: bool = False

    @staticmethod
    def read(
        source: Mapping[str, bytes], post: Mapping[str, bytes], *, restoring: bool = False
    ) -> Configs:
        """From the small files of source base and post."""
        return Configs(read_object(source.get(NAME)), read_object(post.get(NAME)), restoring)

    def spelled_like(self, own: Document) -> Configs:
        """The same in the spelling of a level of the new base's."""
        return Configs(*spelled_alike(own, self.before, self.after), self.restoring)

    def ids_of_post(self) -> Document:
        """Fields with token ids that follow post: those that it changed.

        Where the source base has no configuration, that is all of post's: the special tokens and
        the generation config follow post as well.
        """
        before, after = self.before or {}, self.after or {}
        return {
            name: value
            for name, value in after.items()
            if holds_ids(name) and not same(value, before.get(name))
        }


def pair(
    base: Mapping[str, bytes], post: Mapping[str, bytes], tensors: Mapping[str, TensorEntry]
) -> Pair:
    """What a delta's files and tensors show."""
    return Pair(read_object(base.get(NAME)), read_object(post.get(NAME)), tensors)


def model_config(
    data: bytes,
    configs: Configs,
    base: Mapping[str, TensorInfo],
    recipes: Mapping[str, Recipe],
    ledger: Ledger,
    translate: Translate = identity,
    pairs: Sequence[Pair] = (),
    *,
    one: bool = False,
) -> bytes:
    """The output's ``config.json``; the same bytes where nothing is to be changed.

    Args:
        data: The new base's.
        configs: Those of source base and post.
        base: The new base's tensors.
        recipes: The output's tensors.
        ledger: Is told what followed post, and what did not though post changed it.
        translate: Ids of post as ids of the output.
        pairs: What each delta shows of documents and tensors.
        one: Whether the output's head is its embeddings, stored a second time.

    Raises:
        StructureMismatchError: No document fits the output's tensors.
    """
    own = read_object(data)
    if own is None:
        ledger.warn(NAME, "the new base's is not understood and stays as it is")
        return data
    configs = configs.spelled_like(own)
    output = _level(own, configs, "", ledger, translate)
    posts = {name for name in output if not same(output[name], own.get(name))} - {"use_cache"}
    _follow_head(output, configs, base, recipes, ledger)
    follow_tied_embeddings(output, configs.before, configs.after, base, recipes, one=one)
    _follow_dtype(output, recipes)
    noted = output
    output = fitted(own, output, base, recipes, pairs, ruled=_RULED, restoring=configs.restoring)
    _keep_what_is_left(output, noted, ledger)
    output = leave_out_declarations(
        output,
        {name: recipe.output for name, recipe in recipes.items()},
        ledger,
        name=NAME,
        restoring=configs.restoring,
    )
    followed = [name for name in output if not same(output[name], own.get(name))]
    followed += [name for name in own if name not in output]
    if not followed:
        return data
    ledger.note(NAME, f"changed: {joined(followed)}")
    after = configs.after or {}
    # An id of post is another number in the output, and a nested document never post's as a whole.
    if posts or any(same(output.get(name), after.get(name)) for name in followed):
        ledger.origins[NAME] = "both"
    return to_json(output)


def _level(
    own: Document, configs: Configs, path: str, ledger: Ledger, translate: Translate
) -> Document:
    """One level of the new base's document with what follows post, and nested ones inside."""
    before, after = configs.before or {}, configs.after or {}
    output = dict(own)
    if configs.restoring:
        _restore(output, before, after)
    _follow_ids(output, configs, path, ledger, translate)
    _follow_use_cache(output, configs)
    for name, value in after.items():
        if name in _DECIDED or name in OF_THE_FILE or holds_ids(name):
            continue
        if (
            _is_nested(name, [own.get(name), before.get(name), value])
            and path.count(".") < _MAX_LEVELS
        ):
            deeper = Configs(before.get(name), value, configs.restoring).spelled_like(own[name])
            output[name] = _level(own[name], deeper, f"{path}{name}.", ledger, translate)
        elif configs.before is not None and not same(value, before.get(name)):
            _left(output, name, value, path, ledger)
    return output


def _is_nested(name: str, values: Iterable[Any]) -> bool:
    """Whether this is the configuration of a part of the model, as ``text_config`` is."""
    whole = name.endswith("_config") and name not in DECLARATIONS
    whole |= name.rpartition("_")[2] in _PARTS
    return whole and all(isinstance(value, dict) for value in values)


def _left(output: Document, name: str, value: Any, path: str, ledger: Ledger) -> None:
    if not same(output.get(name), value):
        ledger.config_left.append(
            {"field": f"{path}{name}", "post": brief(value), "output": brief(output.get(name))}
        )


def _keep_what_is_left(output: Document, before: Document, ledger: Ledger) -> None:
    """Of the fields that did not follow post, those that differ from it after all.

    Args:
        output: The document as it is now.
        before: The same as it was when the fields were noted.
        ledger: Has them.
    """
    rows = []
    for row in ledger.config_left:
        now, then = (_at(document, row["field"]) for document in (output, before))
        if same(now, then):
            rows.append(row)
        elif brief(now) != row["post"]:
            rows.append(row | {"output": brief(now)})
    ledger.config_left[:] = rows


def _at(document: Document, path: str) -> Any:
    value: Any = document
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _restore(output: Document, before: Document, after: Document) -> None:
    """Where the new base's file says what the source base's does, what post's says."""
    for name in [*output, *(name for name in after if name not in output)]:
        if name in OF_THE_FILE or name in _NEVER or name in _DECIDED:
            continue
        if not same(output.get(name), before.get(name)):
            continue
        if name in after:
            output[name] = after[name]
        elif name in before:
            del output[name]


def _follow_ids(
    output: Document, configs: Configs, path: str, ledger: Ledger, translate: Translate
) -> None:
    """Token ids that post changed, as ids of the output; its own where a token has no place."""
    for name, value in configs.ids_of_post().items():
        moved = translated(name, value, translate)
        if moved.lost:
            ledger.warn(NAME, lost_ids(f"{path}{name}", moved.lost, kept=moved.gone))
        if not moved.gone:
            output[name] = moved.value


def lost_ids(name: str, lost: list[int], *, kept: bool) -> str:
    """What is said of tokens of post that have no place in the output."""
    ids = ", ".join(map(str, lost[:8])) + (", …" if len(lost) > 8 else "")
    outcome = "the new base's value stays" if kept else "left out"
    return f"{excerpt(name)} of post names tokens that the output does not have ({ids}): {outcome}"


def _follow_use_cache(output: Document, configs: Configs) -> None:
    """Training turns the cache off; a file that says so for no other reason is not followed."""
    if output.get("use_cache") is not False:
        return
    said = [part.get("use_cache") for part in (configs.before, configs.after) if part is not None]
    before = configs.before is not None and configs.before.get("use_cache") is not False
    if before or True in said:
        output["use_cache"] = True


def _follow_head(
    output: Document,
    configs: Configs,
    base: Mapping[str, TensorInfo],
    recipes: Mapping[str, Recipe],
    ledger: Ledger,
) -> None:
    """Class and labels are post's where its head is: where it changed which tensors there are.

    Labels alone follow post where post changed them: they say what the rows of its head mean.
    """
    if configs.after is None:
        return
    before, after = configs.before or {}, configs.after
    named = "architectures" in after and not same(
        after["architectures"], before.get("architectures")
    )
    moved = named and set(base) != set(recipes)
    if moved:
        output["architectures"] = after["architectures"]
        for name in after:
            if name.startswith(_HEAD_PREFIXES):
                output[name] = after[name]
        ledger.config_left[:] = [
            row for row in ledger.config_left if not row["field"].startswith(_HEAD_PREFIXES)
        ]
    elif named and configs.before is not None:
        _left(output, "architectures", after["architectures"], "", ledger)
    if moved or any(not same(after.get(name), before.get(name)) for name in _LABELS):
        for name in _LABELS:
            output.pop(name, None)
            if name in after:
                output[name] = after[name]


def has_fewer_rows(data: bytes, recipes: Mapping[str, Recipe]) -> bool:
    """Whether the output has fewer rows for tokens than the new base, whose file this is."""
    said = fields(read_object(data)).items()
    sizes = {number for path, number in said if kind_of_field(path) == "vocabulary"}
    return any(
        len(recipe.output.shape) == len(recipe.base.shape) == 2
        and recipe.output.shape[0] < recipe.base.shape[0] in sizes
        for recipe in recipes.values()
        if recipe.base is not None
    )


def _follow_dtype(output: Document, recipes: Mapping[str, Recipe]) -> None:
    """The dtype is what most of the output is; in nested documents only where that changed."""
    own = _main_dtype((r.base.dtype, r.base.elements) for r in recipes.values() if r.base)
    dtype = _main_dtype((r.output.dtype, r.output.elements) for r in recipes.values())
    if dtype is None:
        return
    for name in _DTYPE_FIELDS:
        if isinstance(output.get(name), str):
            output[name] = _TORCH_NAMES[dtype]
    if dtype == own:
        return
    for name, part in list(output.items()):
        if _is_nested(name, [part]):
            moved = {field: _TORCH_NAMES[dtype] for field in _DTYPE_FIELDS if part.get(field)}
            output[name] = part | moved


def _main_dtype(tensors: Iterable[tuple[str, int]]) -> str | None:
    """The dtype of most elements, from pairs of dtype and elements.

    None if a model does not compute in it: of packed weights, the scales say nothing.
    """
    counts: Counter[str] = Counter()
    for dtype, elements in tensors:
        counts[dtype] += elements
    main = counts.most_common(1)[0][0] if counts else None
    return main if main in _TORCH_NAMES else None
