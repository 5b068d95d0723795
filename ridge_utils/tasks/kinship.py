"""Stories about families whose relations compose: the generator behind the offline set of ``clutrr``.

The idea is that of CLUTRR (Sinha et al. 2019). Rules, sentences and code were written for this project.

The world has five rules: everyone has one father and one mother, who are married to each other; everyone is married at
most once; siblings share both parents; blood relatives do not marry; different names are different people. Uncles,
aunts, nephews and nieces are relatives by blood. From these rules follow :data:`RULES`: who the relative of a relative
is. It holds exactly the compositions with one possible answer. Left out are those with several (a grandmother's
daughter is a mother or an aunt) and those whose answer is not asked for (an uncle's son, a wife's brother). A sentence
says a relation in either direction, and names or shows by a pronoun the gender of both people.

A story is a walk p_0, p_1, …, p_k through a family tree. It starts with two people who have the relation asked for;
as long as it is too short, a person z is put between two neighbours x and y such that :data:`RULES` composes the
relations x → z and z → y into x → y. So the chain of k relations determines the relation of p_k to p_0. Nobody is met
twice.
"""

import functools
import itertools
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: Lengths that a chain of relations can have.
HOPS = range(2, 11)

#: Kinds of relations, each with its word for a man and for a woman. A pibling is a parent's sibling, a nibling a
#: sibling's child.
KINDS: dict[str, tuple[str, str]] = {
    "parent": ("father", "mother"),
    "child": ("son", "daughter"),
    "sibling": ("brother", "sister"),
    "spouse": ("husband", "wife"),
    "grandparent": ("grandfather", "grandmother"),
    "grandchild": ("grandson", "granddaughter"),
    "pibling": ("uncle", "aunt"),
    "nibling": ("nephew", "niece"),
    "parent-in-law": ("father-in-law", "mother-in-law"),
    "child-in-law": ("son-in-law", "daughter-in-law"),
}

#: A relation's kind and whether it names a woman.
_BY_WORD = {word: (kind, female) for kind, pair in KINDS.items() for female, word in enumerate(pair)}

#: The relations that a story can ask for, all but husband and wife, as in CLUTRR's release.
TARGETS = tuple(word for word, (kind, _) in _BY_WORD.items() if kind != "spouse")

#: If z is the first kind of relative of x, and y the second kind of relative of z, then y is this to x.
RULES: dict[tuple[str, str], str] = {
    ("parent", "parent"): "grandparent",
    ("parent", "child"): "sibling",
    ("parent", "sibling"): "pibling",
    ("parent", "spouse"): "parent",
    ("child", "parent"): "spouse",
    ("child", "child"): "grandchild",
    ("child", "sibling"): "child",
    ("child", "spouse"): "child-in-law",
    ("sibling", "parent"): "parent",
    ("sibling", "child"): "nibling",
    ("sibling", "sibling"): "sibling",
    ("sibling", "grandparent"): "grandparent",
    ("sibling", "pibling"): "pibling",
    ("spouse", "parent"): "parent-in-law",
    ("spouse", "child"): "child",
    ("spouse", "grandchild"): "grandchild",
    ("grandparent", "spouse"): "grandparent",
    ("grandchild", "sibling"): "grandchild",
    ("pibling", "parent"): "grandparent",
}

_WORDS = json.loads(Path(__file__).with_name("kinship_words.json").read_text(encoding="utf-8"))
#: Sentences that say which relative {b} is of {a}. Each has a pronoun for {a}, so that both genders are told.
FRAMES: dict[str, tuple[str, ...]] = {kind: tuple(texts) for kind, texts in _WORDS["frames"].items()}
MALE_NAMES, FEMALE_NAMES = (tuple(_WORDS[gender].split()) for gender in ("men", "women"))

#: Familiar words that a quarter of the sentences use instead.
FAMILIAR = {"father": "dad", "mother": "mom", "grandfather": "grandpa", "grandmother": "grandma"}


@dataclass(frozen=True)
class Story:
    """A chain of relatives, told in sentences."""

    #: the sentences, in random order, joined by spaces
    text: str
    #: the people of the chain, from the one the question starts at to the one it asks for; hops + 1 names
    names: tuple[str, ...]
    #: the relation of the last person to the first
    relation: str


def tell(relation: str, hops: int, rng: random.Random) -> Story:
    """Tell a story whose last person is the ``relation`` of its first, by a chain of ``hops`` relations.

    ``relation`` is one of :data:`TARGETS`, ``hops`` one of :data:`HOPS`.
    """
    tree = _tree()
    walk = _walk(relation, hops, rng)
    pools = [rng.sample(MALE_NAMES, hops + 1), rng.sample(FEMALE_NAMES, hops + 1)]
    name = {person: pools[tree.female[person]][place] for place, person in enumerate(walk)}
    frames = {kind: rng.sample(texts, len(texts)) for kind, texts in FRAMES.items()}
    sentences = []
    for x, y in itertools.pairwise(walk):
        a, b = (x, y) if rng.random() < 0.5 else (y, x)
        kind = tree.kin[a][b]
        word = KINDS[kind][tree.female[b]]
        if word in FAMILIAR and rng.random() < 0.25:
            word = FAMILIAR[word]
        # A story may need more sentences of a kind than there are frames; they then come round again.
        frame = frames[kind].pop(0)
        frames[kind].append(frame)
        his, him = ("her", "her") if tree.female[a] else ("his", "him")
        sentences.append(frame.format(a=name[a], b=name[b], kin=word, his=his, him=him))
    rng.shuffle(sentences)
    return Story(" ".join(sentences), tuple(name[person] for person in walk), relation)


def _walk(relation: str, hops: int, rng: random.Random) -> list[int]:
    """People of the tree, each once, whose relations compose into ``relation``."""
    walk = list(rng.choice(_tree().pairs[relation]))
    while len(walk) <= hops:
        place = rng.choice([place for place in range(1, len(walk)) if _fitting(walk, place)])
        # Rules first: siblings are many and would crowd out parents and spouses.
        walk.insert(place, rng.choice(rng.choice(_fitting(walk, place))))
    return walk


def _fitting(walk: list[int], place: int) -> list[list[int]]:
    """Who can be put between the neighbours at ``place``, one list a rule."""
    options = _tree().between.get((walk[place - 1], walk[place]), ())
    free = ([person for person in people if person not in walk] for people in options)
    return [people for people in free if people]


@dataclass(frozen=True)
class _Tree:
    #: whether each person is a woman
    female: list[bool]
    #: for each person, the kinds of their relatives
    kin: list[dict[int, str]]
    #: the pairs of people for each relation asked for
    pairs: dict[str, list[tuple[int, int]]]
    #: for two relatives, who stands between them, one list a rule
    between: dict[tuple[int, int], list[list[int]]]


@functools.cache
def _tree() -> _Tree:
    """The family tree that all walks go through: two unrelated couples, whose children marry and have children.

    A chain from someone to a parent, child or sibling cannot leave their family: whoever is reached by way of outsiders
    could be one of several people. So ten relations, among eleven people, need couples with five sons and five
    daughters.
    """
    female: list[bool] = []
    parents: list[tuple[int, ...]] = []
    children: list[list[int]] = []
    spouse: dict[int, int] = {}

    def born(is_female: bool, couple: tuple[int, ...] = ()) -> int:
        person = len(female)
        female.append(is_female)
        parents.append(couple)
        children.append([])
        for parent in couple:
            children[parent].append(person)
        return person

    def wed(husband: int, wife: int) -> tuple[list[int], list[int]]:
        spouse[husband], spouse[wife] = wife, husband
        sons, daughters = ([born(is_female, (husband, wife)) for _ in range(5)] for is_female in (False, True))
        return sons, daughters

    (sons, daughters), (other_sons, other_daughters) = (wed(born(False), born(True)) for _ in range(2))
    for husband, wife in zip(sons + other_sons, other_daughters + daughters, strict=True):
        wed(husband, wife)

    def relatives(person: int) -> dict[int, str]:
        couple = [spouse[person]] if person in spouse else []

        def siblings(one: int) -> list[int]:
            return [other for other in (children[parents[one][0]] if parents[one] else []) if other != one]

        by_kind: dict[str, Iterable[int]] = {
            "parent": parents[person],
            "child": children[person],
            "sibling": siblings(person),
            "spouse": couple,
            "grandparent": [old for parent in parents[person] for old in parents[parent]],
            "grandchild": [young for child in children[person] for young in children[child]],
            "pibling": [other for parent in parents[person] for other in siblings(parent)],
            "nibling": [child for sibling in siblings(person) for child in children[sibling]],
            "parent-in-law": [old for partner in couple for old in parents[partner]],
            "child-in-law": [spouse[child] for child in children[person] if child in spouse],
        }
        return {other: kind for kind, people in by_kind.items() for other in people}

    kin = [relatives(person) for person in range(len(female))]
    pairs: dict[str, list[tuple[int, int]]] = {word: [] for word in TARGETS}
    between: dict[tuple[int, int], list[list[int]]] = {}
    for x, around in enumerate(kin):
        for y, kind in around.items():
            if kind != "spouse":
                pairs[KINDS[kind][female[y]]].append((x, y))
            by_rule: dict[tuple[str, str], list[int]] = {}
            for z, first in around.items():
                if RULES.get((first, kin[z].get(y, ""))) == kind:
                    by_rule.setdefault((first, kin[z][y]), []).append(z)
            between[x, y] = list(by_rule.values())
    return _Tree(female, kin, pairs, between)
