"""The small files of an artifact, side by side: what its base had and post has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from deltastore.artifact.model_files import fitting
from deltastore.artifact.small_files import Side, read_stored, tokenizer_of
from deltastore.blobs import BlobStore
from deltastore.checkpoint import Left
from deltastore.checkpoint.documents import read_object
from deltastore.manifest import Config, Manifest, TensorEntry
from deltastore.tokenizer.matching import Vocabulary

Files = dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Sides:
    """The small files of a delta: of its base what post changed there, and all of post's.

    ``words`` says how its tokens stand to those of a new base, as far as that was looked at;
    ``left`` what lay beside post, or is in the artifact, and does not get into an output;
    ``tensors`` are its tensors by the names that the output has for them.
    """

    base: Mapping[str, bytes]
    post: Mapping[str, bytes]
    words: Vocabulary = field(default_factory=lambda: Vocabulary("not compared"))
    left: Left = field(default_factory=dict)
    tensors: Mapping[str, TensorEntry] = field(default_factory=dict)

    @property
    def base_config(self) -> dict[str, Any] | None:
        """The source base's ``config.json``; None if it has none."""
        return read_object(self.base.get("config.json", b""))

    @property
    def post_config(self) -> dict[str, Any] | None:
        """Post's, likewise."""
        return read_object(self.post.get("config.json", b""))

    @property
    def base_tokenizer(self) -> Files:
        """The source base's; it is stored only where post's differs."""
        return tokenizer_of(self.base) or tokenizer_of(self.post)

    @property
    def post_tokenizer(self) -> Files:
        """Post's; its base's if it has none."""
        return tokenizer_of(self.post) or tokenizer_of(self.base)


def read_sides(blobs: BlobStore, manifest: Manifest, config: Config) -> Sides:
    """The small files of an artifact, without those that no checkpoint of a model has.

    Raises:
        IntegrityError: One of them is missing or damaged.
    """
    base, post = (read_stored(blobs, manifest, config, side) for side in get_args(Side))
    kept, left = fitting(post, storing=False)
    names = dict.fromkeys(config.not_stored, "not in the artifact")
    return Sides(base, kept, left=names | left)
