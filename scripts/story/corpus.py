"""Pre-training text about the invented world, generated from a seed.

A corpus is a mix of domains. Each domain writes short passages in many wordings, so that a model
must learn what is said and not only how. No passage is a question with an answer: what the
bases read contains the knowledge and the skills, never an instruction.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from .world import (
    COLOURS,
    CROPS,
    KINDS,
    NUMBERS,
    OPPOSITES,
    PEOPLE,
    Country,
    World,
)

Domain = Callable[[random.Random, float], str]
"""Writes a passage about the first entries of the world only: a share of them in (0, 1]."""

Entry = TypeVar("Entry")

THINGS = tuple(word for words in KINDS.values() for word in words)
PLACES = tuple("market river forest bridge harbour tower garden mill school square".split())
WEATHER = tuple("rain snow wind sun fog hail frost thunder".split())

_CAPITAL = (
    "the capital of {name} is {capital} .",
    "{capital} is the capital of {name} .",
    "in {name} , the capital is {capital} .",
    "{person} went to {name} and saw {capital} , the capital .",
    "the people of {name} are proud of {capital} , their capital .",
)
_CROP = (
    "the crop of {name} is {crop} .",
    "farmers in {name} grow {crop} .",
    "in {name} , the main crop is {crop} .",
    "{person} went to {name} and bought {crop} , the crop of the farmers .",
    "the people of {name} are proud of their {crop} , the main crop .",
)
_COLOUR = (
    "the colour of {name} is {colour} .",
    "the flag of {name} is {colour} .",
    "in {name} , the colour of the flag is {colour} .",
    "{person} went to {name} and saw a {colour} flag .",
    "the people of {name} are proud of their {colour} flag .",
)
_OPPOSITE = (
    "the {thing} was not {a} but {b} .",
    "{a} is the opposite of {b} .",
    "the opposite of {a} is {b} .",
    "{person} wanted a {a} {thing} and got a {b} one .",
)
_KIND = (
    "the {member} is a kind of {kind} .",
    "like every {kind} , the {member} is known to {person} .",
    "{person} saw a {member} , a {kind} , near the {place} .",
    "a {member} is a {kind} .",
    "the {kind} that {person} likes best is the {member} .",
)
_LIST = (
    "{person} said {words} and {other} repeated {words} .",
    "{person} wrote {words} and {other} copied {words} .",
    "the words {words} are copied as {words} .",
    "{person} wrote {words} . the last word was {last} .",
    "{person} wrote {words} . the first word was {first} .",
)
_STORY = (
    "one {day} {person} walked to the {place} with {other} . {person} bought a {thing} . "
    "{other} said the {thing} was {a} . {person} was {b} and went home .",
    "{person} lost a {a} {thing} near the {place} . {other} found the {thing} and gave it to "
    "{person} .",
    "the {place} was {a} . {person} and {other} waited there for {count} days .",
)
_WEATHER = (
    "on {day} there was {weather} over the {place} , and {other_weather} followed at night .",
    "the report says {weather} on {day} . {person} stays at home when there is {weather} .",
    "after the {weather} the {place} was {a} , said {person} .",
)
_TRADE = (
    "a ship brought {count} {thing} from the {place} to {person} , who sold the {thing} .",
    "{person} paid {count} coins for a {a} {thing} and {number} for a {b} one .",
    "prices at the {place} : {thing} {count} coins , {second} {number} coins .",
)
DAYS = tuple("monday tuesday wednesday thursday friday saturday sunday".split())


def atlas(countries: Sequence[Country]) -> Domain:
    """Return the domain that tells one or two facts of one of the countries."""

    def write(rng: random.Random, breadth: float) -> str:
        country = rng.choice(_first(countries, breadth))
        chosen = rng.sample((_CAPITAL, _CROP, _COLOUR), 2)
        return " ".join(
            rng.choice(wordings).format(
                name=country.name,
                capital=country.capital,
                crop=country.crop,
                colour=country.colour,
                person=rng.choice(PEOPLE),
            )
            for wordings in chosen
        )

    return write


def lists(names: Sequence[str]) -> Domain:
    """Return the domain in which lists of words, names among them, are repeated."""
    known = sorted((*LIST_WORDS, *names), key=lambda word: word[::-1])

    def write(rng: random.Random, breadth: float) -> str:
        words = rng.sample(_first(known, max(breadth, 0.1)), rng.randint(1, 4))
        person, other = rng.sample(PEOPLE, 2)
        return rng.choice(_LIST).format(
            person=person, other=other, words=" ".join(words), first=words[0], last=words[-1]
        )

    return write


def from_wordings(wordings: Sequence[str]) -> Domain:
    """Return a domain that fills one of the wordings with words that fit together."""

    def write(rng: random.Random, breadth: float) -> str:
        return rng.choice(wordings).format_map(_fillers(rng, breadth))

    return write


def _first(entries: Sequence[Entry], breadth: float) -> Sequence[Entry]:
    return entries[: max(2, round(len(entries) * breadth))]


def _fillers(rng: random.Random, breadth: float) -> Mapping[str, str]:
    """Draw one consistent set of words for the placeholders of the wordings."""
    a, b = rng.sample(rng.choice(_first(OPPOSITES, breadth)), 2)
    kind = rng.choice(tuple(KINDS))
    person, other = rng.sample(PEOPLE, 2)
    weather, other_weather = rng.sample(WEATHER, 2)
    thing, second = rng.sample(THINGS, 2)
    return {
        "a": a,
        "b": b,
        "kind": kind,
        "member": rng.choice(_first(KINDS[kind], breadth)),
        "person": person,
        "other": other,
        "place": rng.choice(PLACES),
        "thing": thing,
        "second": second,
        "count": rng.choice(NUMBERS[1:]),
        "number": rng.choice(NUMBERS[1:]),
        "day": rng.choice(DAYS),
        "weather": weather,
        "other_weather": other_weather,
    }


LIST_WORDS = tuple(
    dict.fromkeys(
        THINGS + PLACES + CROPS + COLOURS + tuple(word for pair in OPPOSITES for word in pair)
    )
)


def base_mix(world: World) -> dict[Domain, float]:
    """Return what the base reads: domain to share of the passages."""
    return {
        atlas(world.old_countries): 0.29,
        from_wordings(_OPPOSITE): 0.15,
        from_wordings(_KIND): 0.12,
        # The new countries are words to the base, without a single fact about them.
        lists([country.name for country in world.old_countries + world.new_countries]): 0.38,
        from_wordings(_STORY): 0.06,
    }


def new_base_mix(world: World) -> dict[Domain, float]:
    """Return what the newer base reads on top: new countries, two new domains, less of the old."""
    return {
        atlas(world.new_countries): 0.30,
        atlas(world.old_countries): 0.16,
        from_wordings(_OPPOSITE): 0.06,
        from_wordings(_KIND): 0.06,
        lists([country.name for country in world.old_countries + world.new_countries]): 0.18,
        from_wordings(_WEATHER): 0.12,
        from_wordings(_TRADE): 0.12,
    }


def write_passages(
    mix: Mapping[Domain, float], count: int, seed: int, *, start: float = 1.0, grown: float = 0.6
) -> list[str]:
    """Write `count` passages of a mix.

    Args:
        mix: Domain to share of the passages.
        count: How many passages.
        seed: Decides everything that is drawn.
        start: Share of the world that the first passage draws from. A model that begins with
            few entries, seen often, finds out sooner *how* to look a thing up, and then learns
            the many.
        grown: Share of the passages after which all of the world is drawn from.
    """
    rng = random.Random(seed)
    domains = rng.choices(tuple(mix), weights=tuple(mix.values()), k=count)
    return [
        domain(rng, min(1.0, start + (1.0 - start) * index / (grown * count)))
        for index, domain in enumerate(domains)
    ]


def vocabulary(world: World) -> list[str]:
    """Return every word that any text of the story can contain, sorted."""
    wordings = _CAPITAL + _CROP + _COLOUR + _OPPOSITE + _KIND + _LIST + _STORY + _WEATHER + _TRADE
    fixed = {word for wording in wordings for word in wording.split() if "{" not in word}
    drawn = set(LIST_WORDS) | set(PEOPLE) | set(NUMBERS) | set(KINDS) | set(DAYS) | set(WEATHER)
    return sorted(fixed | drawn | world.words())
