"""CLUTRR (paper, Section 4.1): who is someone to someone else, by a chain of relations told in a story.

CLUTRR (Sinha et al. 2019) asks for the relation of two people that follows from k relations (hops) in a story:

    Josephine called her brother Simon. Oliver went sailing with his father Simon.
    Question: How is Oliver related to Josephine?
    Answer: Oliver is Josephine's   →   " nephew"

Training and in-distribution (ID) stories have 2 or 3 hops, out-of-distribution (OOD) ones 4 to 10. The square brackets
that mark names in the source are removed, and every run of white space is one space.

A local folder (``data_dir``) holds the authors' release as published, in ``clutrr/gen_train23_test2to10``:

- ``1.2,1.3_train.csv``: training. The release has only 143 test stories of 2 and 3 hops, so a tenth of the training
  stories, by a hash of the prompt, is held out for ID. (By the prompt, since 80 rows repeat another.)
- ``1.2_test.csv`` to ``1.10_test.csv``: 2 and 3 hops are ID, the others OOD.

From the Hub, ``train`` is training, without prompts that ``validation`` repeats; ``validation`` and the ``test``
stories of 2 and 3 hops are ID, the other ``test`` stories OOD. The data set's own loading script no longer runs, so the
Hub's conversion to Parquet is read.

The offline set is made by :mod:`ridge_utils.tasks.kinship`; nothing in it is taken from CLUTRR. The relation asked for
is drawn first, then the number of hops, both uniformly. Training and ID are kept apart by a hash of the prompt.

Where only the target's first token is measured, " father-in-law" counts as " father", and so for the other relations by
marriage. The 14 others have 14 different first tokens with SmolLM2's tokenizer (it splits " granddaughter" and
" niece", into " grand" and " n" with the rest).
"""

import ast
import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, field_validator

from ridge_utils.errors import InputError, TooFewExamplesError, shown
from ridge_utils.tasks import kinship, sources
from ridge_utils.tasks.base import MOST, Example, Source, Split

NAME = "clutrr"
HUB_REPO = "CLUTRR/v1"
#: Name of the release's part; on the Hub's Parquet branch, the folder that holds it.
HUB_CONFIG = "gen_train23_test2to10"
#: A commit of the Hub's branch ``refs/convert/parquet``.
HUB_REVISION = "f939f294d6216b0caacef9767a904b49ee90c2d9"

#: Numbers of hops in each split.
SPLIT_HOPS: dict[str, tuple[int, ...]] = {"train": (2, 3), "id": (2, 3), "ood": tuple(range(4, 11))}

#: The relations that a row can ask for, those of the offline set and four that CLUTRR defines beside them.
RELATIONS = (*kinship.TARGETS, "husband", "wife", "brother-in-law", "sister-in-law")

#: Words that name a relation. Plurals in s and the forms with ``-in-law`` belong to them.
KINSHIP_WORDS = (
    "father dad daddy papa mother mom mommy mum mummy mama parent son daughter child children kid "
    "brother sister sibling twin husband wife wives spouse "
    "grandfather granddad grandad grandpa grampa grandmother grandma grandmom granny grandparent "
    "grandson granddaughter grandchild grandchildren grandkid uncle aunt auntie nephew niece cousin"
)

_KINSHIP = re.compile(rf"\b(?:{'|'.join(KINSHIP_WORDS.split())})s?(?:-in-law)?\b", re.IGNORECASE)
_NAME = re.compile(r"\[([^\[\]]*)\]")
_TRAINING_FILE = "1.2,1.3_train.csv"
_TEST_FILE = "1.{}_test.csv"
#: Tenths of the prompts that are ID and not training; of the offline set, more are to be had.
_HELD_OUT_LOCAL, _HELD_OUT_OFFLINE = 1, 5


def load(
    split: Split,
    n: int | None,
    seed: int = 0,
    *,
    data_dir: str | Path | None = None,
    source: sources.Origin = "auto",
    hops: Annotated[list[int] | tuple[int, ...] | None, Field(description="a list of integers such as [2, 3]")] = None,
) -> list[Example]:
    """``n`` different stories with their question, whose ``signal_spans`` cover the words that name a relation.

    The offline set has no end, so its n must be given. The folder ``data_dir`` holds ``clutrr/gen_train23_test2to10``.
    ``hops`` takes only stories of these numbers of hops, None all that the split has.
    """
    chosen = _choose(split, hops)
    origin = sources.resolve(NAME, source, data_dir)
    if origin == "offline":
        if n is None:
            raise InputError(
                f"Task {NAME!r} is generated offline and has no end: say how many examples it should give."
            )
        if n > MOST:
            raise TooFewExamplesError(f"{shown(n)} examples were asked for, but {NAME} makes {MOST} at most.")
        return _generate(split, n, seed, chosen)
    rows = _local(Path(data_dir).expanduser(), split, chosen) if data_dir else _hub(split, chosen)
    return sources.draw(f"the {split} split of {NAME}", list(rows), n, f"{NAME}/{split}/{seed}")


def signal_spans(story: str) -> tuple[tuple[int, int], ...]:
    """Where a story names relations: the answer composes these.

    The words are :data:`KINSHIP_WORDS`, also in the plural and with ``-in-law``. Whole words count, without regard to
    case, each time that they stand there. Relations told otherwise (``married``, ``had a baby``) are not found.
    The ranges are half-open, of characters.
    """
    return tuple(match.span() for match in _KINSHIP.finditer(story))


def _choose(split: Split, hops: Sequence[int] | None) -> tuple[int, ...]:
    have = SPLIT_HOPS[split]
    if hops is None:
        return have
    chosen = tuple(hop for hop in have if hop in hops)
    if not chosen:
        raise InputError(
            f"The {split} split of {NAME} has stories of {have[0]} to {have[-1]} hops, but hops={shown(list(hops))} "
            "was given: choose among those, or another split."
        )
    return chosen


def _generate(split: Split, n: int, seed: int, hops: tuple[int, ...]) -> list[Example]:
    rng = random.Random(f"{NAME}/{split}/{seed}")
    examples: dict[str, Example] = {}
    while len(examples) < n:
        story = kinship.tell(rng.choice(kinship.TARGETS), rng.choice(hops), rng)
        example = _write(story.text, story.names[0], story.names[-1], story.relation, split, "synthetic")
        if split == "ood" or _is_held_out(example.prompt, _HELD_OUT_OFFLINE) == (split == "id"):
            examples.setdefault(example.prompt, example)
    return list(examples.values())


def _local(folder: Path, split: Split, hops: tuple[int, ...]) -> Iterator[Example]:
    folder = folder / NAME / HUB_CONFIG
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: data_dir must be the folder that holds {NAME}/{HUB_CONFIG}.")
    if split != "ood":
        for example, count in _read(folder / _TRAINING_FILE, SPLIT_HOPS["train"], split):
            if count in hops and _is_held_out(example.prompt, _HELD_OUT_LOCAL) == (split == "id"):
                yield example
    if split != "train":
        for hop in hops:
            yield from (example for example, _ in _read(folder / _TEST_FILE.format(hop), (hop,), split))


def _read(path: Path, hops: tuple[int, ...], split: Split) -> Iterator[tuple[Example, int]]:
    seen: set[tuple[str, ...]] = set()
    for where, columns in sources.read_csv(path, _Row.model_fields):
        # A repeated row is no other example, and to check it again takes most of the time of a long file.
        if (row := tuple(map(str, columns.values()))) not in seen:
            seen.add(row)
            yield _parse(columns, where, hops, split, "local")


def _hub(split: Split, hops: tuple[int, ...]) -> list[Example]:
    def part(name: str) -> list[Example]:
        have = kinship.HOPS if name == "test" else SPLIT_HOPS["train"]
        # The Parquet branch has no named configurations: theirs are folders. Its ``target`` is the relation's number.
        rows = enumerate(sources.from_hub(NAME, HUB_REPO, None, HUB_REVISION, name, HUB_CONFIG))
        parsed = (
            _parse(row | {"target": row.get("target_text")}, f"row {index} of {name}, {HUB_REPO}", have, split, "hub")
            for index, row in rows
        )
        return [example for example, count in parsed if count in hops]

    if split == "train":
        held_out = {example.prompt for example in part("validation")}
        return [example for example in part("train") if example.prompt not in held_out]
    return [*(part("validation") if split == "id" else ()), *part("test")]


def _plain(story: object) -> object:
    """A story without the brackets around names, with single spaces."""
    return " ".join(_NAME.sub(r"\1", story).split()) if isinstance(story, str) else story


def _literal(text: object) -> object:
    """What a Python literal stands for; pydantic turns the error into one of the field."""
    try:
        return ast.literal_eval(text)  # type: ignore[arg-type]  # anything but a text is an error too
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError from error


class _Row(BaseModel):
    story: Annotated[str, BeforeValidator(_plain), Field(min_length=1, description="a text that is not empty")]
    query: Annotated[tuple[str, str], BeforeValidator(_literal)] = Field(
        strict=True, description="two different names of the story, such as ('Ann', 'Bob')"
    )
    target: str = Field(pattern=f"^({'|'.join(RELATIONS)})$", description=f"one of {', '.join(RELATIONS)}")
    task_name: str = Field(pattern=r"^task_1\.\d+$", description="task_1. and the number of hops")
    edge_types: Annotated[list[str], BeforeValidator(_literal)] = Field(description="a list of relations")

    @field_validator("query")
    @classmethod
    def _are_in_the_story(cls, names: tuple[str, str], info: ValidationInfo) -> tuple[str, str]:
        if names[0] == names[1] or not all(name and name in info.data.get("story", "") for name in names):
            raise ValueError
        return names


def _parse(
    columns: dict[str, Any], where: str, hops: Sequence[int], split: Split, source: Source
) -> tuple[Example, int]:
    """Check one row of CLUTRR; the example and its number of hops."""
    row = sources.parse(_Row, columns, where)
    count = int(row.task_name.removeprefix("task_1."))
    if count not in hops:
        names = ", ".join(f"task_1.{hop}" for hop in hops)
        raise InputError(f"In {where}, the field 'task_name' must be {names} in this file, but is {row.task_name!r}.")
    if len(row.edge_types) != count:
        raise InputError(
            f"In {where}, the field 'edge_types' must be a list of {count} relations, as {row.task_name} says, but is "
            f"{columns['edge_types']!r}."
        )
    return _write(row.story, *row.query, row.target, split, source), count


def _write(story: str, first: str, second: str, relation: str, split: Split, source: Source) -> Example:
    prompt = f"{story}\nQuestion: How is {second} related to {first}?\nAnswer: {second} is {first}'s"
    return Example(prompt, f" {relation}", split, source, signal_spans(story))


def _is_held_out(prompt: str, tenths: int) -> bool:
    return hashlib.sha256(prompt.encode()).digest()[0] * 10 < tenths * 256
