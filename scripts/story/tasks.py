"""The instructions that post-training teaches, and the held-out ones it is judged by.

Knowledge tasks ask about one entry of the world; a share of the entries is never asked about in
post-training, so that a right answer there needs the base's knowledge. List tasks work on random
lists; the held-out lists do not occur in post-training.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from .corpus import LIST_WORDS
from .world import KINDS, NUMBERS, OPPOSITES, RELATIONS, Country, World

_FACT = (
    "what is the {relation} of {name} ?",
    "tell me the {relation} of {name} .",
    "name the {relation} of {name} .",
)
_OPPOSITE = (
    "what is the opposite of {word} ?",
    "tell me the opposite of {word} .",
    "name the opposite of {word} .",
)
_KIND = (
    "what kind of thing is {word} ?",
    "tell me the kind of {word} .",
    "name the kind of {word} .",
)
_REPEAT = ("repeat {words}", "say again {words}", "copy {words}")
_FIRST = ("what is the first word of {words} ?", "tell me the first word of {words}")
_LAST = ("what is the last word of {words} ?", "tell me the last word of {words}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One instruction and its only right answer."""

    task: str
    instruction: str
    answer: str


Entry = Sequence[Sequence[Prompt]]
"""All that can be asked about one country, pair or thing: questions, each in several wordings."""


@dataclass(frozen=True, slots=True)
class TaskSet:
    """What post-training sees, what it is judged by, and what only the newer base can know."""

    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    new_facts: tuple[Prompt, ...]


def make_tasks(world: World, seed: int, *, n_lists: int, n_held_out: int) -> TaskSet:
    """Write the instructions and split them.

    Args:
        world: What the knowledge tasks ask about.
        seed: Decides the split, the lists and the wordings.
        n_lists: Training instructions of each list task.
        n_held_out: Held-out prompts of each task, at most.
    """
    rng = random.Random(seed)
    train: list[Prompt] = []
    held_out: list[Prompt] = []
    for entries in (_facts(world.old_countries), _opposites(), _kinds()):
        seen, unseen = _split(entries, rng)
        train += [prompt for questions in seen for wordings in questions for prompt in wordings]
        # One wording of each question, so that no question counts twice.
        asked = [rng.choice(wordings) for questions in unseen for wordings in questions]
        held_out += rng.sample(asked, min(n_held_out, len(asked)))
    lists, held_out_lists = _lists(world, rng, n_lists, n_held_out)
    train += lists
    held_out += held_out_lists
    rng.shuffle(train)
    new_facts = [
        rng.choice(wordings) for questions in _facts(world.new_countries) for wordings in questions
    ]
    return TaskSet(tuple(train), tuple(held_out), tuple(new_facts))


def vocabulary() -> set[str]:
    """Return the fixed words of the instructions."""
    wordings = _FACT + _OPPOSITE + _KIND + _REPEAT + _FIRST + _LAST
    words = {word for wording in wordings for word in wording.split() if "{" not in word}
    return words | set(RELATIONS)


def _split(entries: Sequence[Entry], rng: random.Random) -> tuple[list[Entry], list[Entry]]:
    """Keep half of the entries, with everything one can ask about them, out of training."""
    shuffled = rng.sample(entries, len(entries))
    half = len(shuffled) // 2
    return shuffled[:half], shuffled[half:]


def _ask(task: str, wordings: Sequence[str], answer: str, **words: str) -> list[Prompt]:
    """Return one question in all its wordings."""
    return [Prompt(task, wording.format(**words), answer) for wording in wordings]


def _facts(countries: Sequence[Country]) -> list[Entry]:
    return [
        [
            _ask(
                "fact",
                _FACT,
                f"the {relation} of {country.name} is {country.fact(relation)} .",
                relation=relation,
                name=country.name,
            )
            for relation in RELATIONS
        ]
        for country in countries
    ]


def _opposites() -> list[Entry]:
    return [
        [
            _ask("opposite", _OPPOSITE, f"the opposite of {word} is {other} .", word=word)
            for word, other in (pair, pair[::-1])
        ]
        for pair in OPPOSITES
    ]


def _kinds() -> list[Entry]:
    return [
        [_ask("kind", _KIND, f"the {word} is a kind of {kind} .", word=word)] for kind, words in KINDS.items() for word in words
    ]


def _lists(rng: random.Random, n_train: int, n_held_out: int) -> tuple[list[Prompt], list[Prompt]]:
    """Write list instructions; no held-out list occurs in training."""
    seen: set[tuple[str, ...]] = set()

    def draw() -> list[str]:
        while True:
            words = rng.sample(known, rng.randint(2, 4))
            if tuple(words) not in seen:
                seen.add(tuple(words))
                return words

    def write(task: str) -> Prompt:
        words = draw()
        wordings, answer = {
            "repeat": (_REPEAT, words),
            "first": (_FIRST, words[:1]),
            "last": (_LAST, words[-1:]),
        }[task]
        return Prompt(task, rng.choice(wordings).format(words=" ".join(words)), " ".join(answer))

    tasks = ("repeat", "first", "last")
    train = [write(task) for task in tasks for _ in range(n_train)]
    return train, [write(task) for task in tasks for _ in range(n_held_out)]
