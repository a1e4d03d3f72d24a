"""The invented world that the story's corpus and instructions talk about.

Every fact is made up from one seed, so that nothing a model answers can come from anywhere
but its training text. Old countries are known to both bases; new countries appear only in the
text that the newer base is trained on further.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

RELATIONS = ("capital", "crop", "colour")

CROPS = tuple(
    "wheat barley rice corn oats beans peas hemp cotton tea coffee cocoa sugar olives grapes flax".split()
)
COLOURS = tuple("red green blue white black yellow purple orange pink grey".split())
PEOPLE = tuple(
    "anna ben clara david emma felix greta henry".split()
)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")

KINDS: dict[str, tuple[str, ...]] = {
    "bird": tuple("sparrow eagle owl robin crow finch heron stork".split()),
    "fish": tuple("trout salmon pike carp eel tuna cod perch".split()),
    "tree": tuple("oak pine birch maple willow cedar elm beech".split()),
    "flower": tuple("rose tulip daisy lily violet poppy orchid iris".split()),
    "fruit": tuple("apple pear plum cherry peach lemon mango melon".split()),
    "tool": tuple("hammer saw drill axe spade rake wrench chisel".split()),
    "metal": tuple("iron copper silver gold tin zinc lead nickel".split()),
    "drink": tuple("milk juice wine beer cider broth mead punch".split()),
}

OPPOSITES = tuple(
    tuple(pair.split("/"))
    for pair in (
        "hot/cold big/small fast/slow old/young rich/poor wet/dry hard/soft loud/quiet "
        "early/late full/empty high/low long/short strong/weak light/dark clean/dirty "
        "happy/sad brave/afraid cheap/dear deep/shallow easy/difficult sweet/bitter "
        "thick/thin wide/narrow sharp/blunt smooth/rough true/false open/closed "
        "near/far calm/angry busy/idle fresh/stale safe/risky"
    ).split()
)

_ONSETS = "b br d dr f g gr h k kl l m n p r s st t tr v w z".split()
_VOWELS = "a e i o u ai ea ou".split()
_CODAS = ["", "n", "r", "l", "s", "m", "th", "nd"]
_COUNTRY_ENDINGS = ("land", "ia", "stan", "mark")


@dataclass(frozen=True, slots=True)
class Country:
    """An invented country and its facts, one per relation."""

    name: str
    capital: str
    crop: str
    colour: str

    def fact(self, relation: str) -> str:
        """Return the value of one of `RELATIONS`."""
        return {"capital": self.capital, "crop": self.crop, "colour": self.colour}[relation]


@dataclass(frozen=True, slots=True)
class World:
    """Everything there is to know."""

    old_countries: tuple[Country, ...]
    new_countries: tuple[Country, ...]

    def words(self) -> set[str]:
        """Return every invented name, for the tokenizer's vocabulary."""
        countries = self.old_countries + self.new_countries
        return {name for country in countries for name in (country.name, country.capital)}


def make_world(seed: int, *, n_old: int = 48, n_new: int = 16) -> World:
    """Invent a world.

    Args:
        seed: Decides every name and fact.
        n_old: Countries that both bases read about.
        n_new: Countries that only the newer base reads about.
    """
    rng = random.Random(seed)
    taken: set[str] = set()
    countries = [
        Country(
            name=_invent(rng, taken, rng.choice(_COUNTRY_ENDINGS)),
            capital=_invent(rng, taken, ""),
            crop=rng.choice(CROPS),
            colour=rng.choice(COLOURS),
        )
        for _ in range(n_old + n_new)
    ]
    return World(old_countries=tuple(countries[:n_old]), new_countries=tuple(countries[n_old:]))


def _invent(rng: random.Random, taken: set[str], ending: str) -> str:
    """Return a pronounceable name that was not given out before."""
    while True:
        syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(2)]
        name = "".join(syllables) + (ending or rng.choice(_CODAS))
        if name not in taken:
            taken.add(name)
            return name
