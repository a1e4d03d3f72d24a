"""An invented world: its lands, the text that tells of them, and the questions about them.

Bases read passages and never a question. Post-training asks about two thirds of the old lands;
it is judged by questions about the others, so a right answer takes the base's knowledge and the
skill of answering.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
VALUES = {
    "colour": ["red", "blue", "green", "white", "black", "yellow", "brown", "grey"],
    "crop": ["rice", "corn", "wheat", "flax", "hops", "rye", "oats", "beans"],
    "animal": ["goat", "horse", "swan", "bear", "wolf", "crane", "otter", "ram"],
}
RELATIONS = tuple(VALUES)
PEOPLE = ["anna", "ben", "carla", "dora", "emil", "fred", "gina", "hugo"]

_FACTS = (
    "the {relation} of {land} is {value} .",
    "{value} is the {relation} of {land} .",
    "in {land} the {relation} is {value} .",
    "{person} went to {land} and learned that its {relation} is {value} .",
    "ask {person} of {land} , and you hear that {value} is the {relation} there .",
)
_TALK = (
    "{person} bought {crop} and a {colour} {animal} .",
    "a {colour} {animal} ate the {crop} of {person} .",
    "{person} sold a {animal} to {other} , who paid with {crop} .",
)
_QUESTIONS = (
    "what is the {relation} of {land} ?",
    "tell me the {relation} of {land} .",
    "name the {relation} of {land} .",
    "the {relation} of {land} , please .",
    "{land} has which {relation} ?",
)


@dataclass(frozen=True, slots=True)
class Land:
    """A land and its one value of each relation."""

    name: str
    facts: dict[str, str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question and its only right answer."""

    task: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class World:
    """All lands: those the first base reads of, and those only the newer base reads of."""

    old: tuple[Land, ...]
    new: tuple[Land, ...]
    held_out: frozenset[str]


def make_world(seed: int, *, n_old: int = 60, n_new: int = 12) -> World:
    """Invent the lands; a third of the old ones is never asked about in post-training."""
    rng = random.Random(seed)
    names: dict[str, None] = {}
    while len(names) < n_old + n_new:
        names["".join(rng.choice(SYLLABLES) for _ in range(3))] = None
    lands = [
        Land(name, {relation: rng.choice(values) for relation, values in VALUES.items()})
        for name in names
    ]
    old, new = tuple(lands[:n_old]), tuple(lands[n_old:])
    held_out = frozenset(land.name for land in rng.sample(old, n_old // 3))
    return World(old, new, held_out)


def passage(rng: random.Random, lands: Sequence[Land], *, talk: float) -> str:
    """One sentence: a fact about one of the lands or, with probability ``talk``, small talk."""
    person, other = rng.sample(PEOPLE, 2)
    if rng.random() < talk:
        things = {relation: rng.choice(values) for relation, values in VALUES.items()}
        return rng.choice(_TALK).format(person=person, other=other, **things)
    land, relation = rng.choice(lands), rng.choice(RELATIONS)
    return rng.choice(_FACTS).format(
        land=land.name, relation=relation, value=land.facts[relation], person=person
    )


def prompts(lands: Sequence[Land]) -> list[Prompt]:
    """Every question about these lands in every wording."""
    return [
        Prompt(relation, wording.format(relation=relation, land=land.name), land.facts[relation])
        for land in lands
        for relation in RELATIONS
        for wording in _QUESTIONS
    ]


def training_prompts(world: World) -> list[Prompt]:
    """What post-training asks."""
    return prompts([land for land in world.old if land.name not in world.held_out])


def test_prompts(world: World) -> list[Prompt]:
    """What post-training never asked; five wordings of three questions on each held-out land."""
    return prompts([land for land in world.old if land.name in world.held_out])


def vocabulary(world: World) -> list[str]:
    """Every word of the world, in alphabetical order."""
    words = {word for wording in (*_FACTS, *_TALK, *_QUESTIONS) for word in wording.split()}
    words = {word for word in words if "{" not in word} | set(PEOPLE) | set(RELATIONS)
    for land in (*world.old, *world.new):
        words |= {land.name, *land.facts.values()}
    for values in VALUES.values():
        words |= set(values)
    return sorted(words)
