"""ECQA (paper, Section 4.1): questions of everyday knowledge with five choices, answered with the text of one.

ECQA (Aggarwal et al. 2021) explains the answers of CommonsenseQA (Talmor et al. 2019). Its questions are
CommonsenseQA's, and its explanations are not used here:

    Question: {stem}
    A. {choice}
    …
    E. {choice}
    Answer:   →   " {text of the right choice}"

The paper does not say whether the target is the letter or the text. It is about generation, so the text is taken. With
``answer="letter"`` it is the letter, " A" to " E", of the same questions: five targets, each one token with SmolLM2's
tokenizer, in place of nearly as many as there are questions. In each split of the local files a letter is right for 18
to 21 % of the questions, no further from a fifth than chance would have it.

Nor does the paper say what is out-of-distribution (OOD) here. A shift of topic is taken: every question is about a
concept, and a fifth of the concepts is held out by a hash. Training never asks about those, and OOD asks about nothing
else.

A local folder (``data_dir``) holds the files as published:

- ``commonsense_qa/train_rand_split.jsonl`` and ``dev_rand_split.jsonl``: CommonsenseQA 1.11;
- ``ecqa/train_ids.txt``, ``val_ids.txt`` and ``test_ids.txt``: ECQA's split, one CommonsenseQA id a line. Its 10,882
  lines name 10,839 questions, since 36 stand in more than one of the files. Such a question belongs to the first of
  train, val and test that names it, so that no training question is evaluated.

From the Hub comes CommonsenseQA itself, at a fixed revision: its ``train`` is training, its ``validation`` ID and OOD.
The mirrors of ECQA add only its explanations and its split, and no full commit hash of one is known to pin. So the
Hub's splits are not the local folder's.

The offline set, ``ecqa_questions.jsonl``, has 187 questions in CommonsenseQA's format. It was written for this project,
is under its licence (MIT), and takes no question from CommonsenseQA or another set. By the same hash a quarter of its
concepts is OOD, a quarter ID, and half training. Every question has its own concept, so ID and OOD differ from training
in the same way: this set shows no shift. To make enough different prompts, each question is asked several times with
its choices rotated.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, field_validator

from ridge_utils.errors import InputError, shown
from ridge_utils.tasks import sources
from ridge_utils.tasks.base import Example, Source, Split

NAME = "ecqa"
HUB_REPO = "tau/commonsense_qa"
HUB_CONFIG = None
HUB_REVISION = "94630fe30dad47192a8546eb75f094926d47e155"

LETTERS = "ABCDE"

_OWN_FILE = Path(__file__).with_name("ecqa_questions.jsonl")
_QUESTION_FILES = ("commonsense_qa/train_rand_split.jsonl", "commonsense_qa/dev_rand_split.jsonl")
_ID_FILES = {"train": "ecqa/train_ids.txt", "val": "ecqa/val_ids.txt", "test": "ecqa/test_ids.txt"}

#: Concepts whose hash is below this, of 256, are held out of training.
_HELD_OUT = 51
#: In the offline set, concepts below the first are OOD, the others below the second ID, and the rest training.
_OWN_OOD, _OWN_ID = 64, 128


class _Choice(BaseModel, str_strip_whitespace=True):
    label: str
    text: sources.Text


class _Question(BaseModel, str_strip_whitespace=True):
    stem: sources.Text
    question_concept: sources.Text
    choices: list[_Choice] = Field(description="five objects with label A to E in order and a text")

    @field_validator("choices")
    @classmethod
    def _are_five(cls, choices: list[_Choice]) -> list[_Choice]:
        if [choice.label for choice in choices] != list(LETTERS):
            raise ValueError
        return choices


class _Row(BaseModel):
    """A line of CommonsenseQA's files."""

    id: sources.Text
    question: _Question = Field(description="an object with stem and choices")
    answerKey: Literal["A", "B", "C", "D", "E"] = Field(description="one of A to E")


def load(
    split: Split,
    n: int | None,
    seed: int = 0,
    *,
    data_dir: str | Path | None = None,
    source: sources.Origin = "auto",
    rotations: Annotated[int, Field(ge=1, le=5, description="an integer from 1 to 5")] = 5,
    answer: Annotated[Literal["text", "letter"], Field(description="text or letter")] = "text",
) -> list[Example]:
    """``n`` different questions, whose ``signal_spans`` cover the concept wherever it is named, and the right choice.

    The target is the ``text`` of the right choice, or its ``letter``; a seed draws the same questions for both. Offline
    each question is asked with its choices rotated by 0, …, ``rotations`` - 1 places, 1 to 5; all rotations of a
    question are in the same split.
    """
    origin = sources.resolve(NAME, source, data_dir)
    if origin != "offline":
        if rotations != 5:
            raise InputError(f"rotations={rotations} is for the offline set; leave it out with source {origin!r}.")
        questions = _local(Path(data_dir).expanduser(), split) if data_dir else _hub(split)
        asked = [_ask(question, split, "local" if data_dir else "hub", answer) for question in questions]
    else:
        turns = range(rotations)
        asked = [_ask(question, split, "synthetic", answer, turn) for question in _offline(split) for turn in turns]
    return sources.draw(f"the {split} split of {NAME}", asked, n, f"{NAME}/{split}/{seed}")


def concept_hash(concept: str) -> int:
    """A concept's first byte under SHA-256, in [0, 255]: the same on every machine; case and outer spaces ignored."""
    return hashlib.sha256(concept.strip().lower().encode()).digest()[0]


def _select(training: Iterable[_Row], evaluation: Iterable[_Row], split: Split) -> list[_Row]:
    """Training without the held-out concepts, or the questions of evaluation without them (ID) or about them (OOD)."""
    candidates = training if split == "train" else evaluation
    return [row for row in candidates if (concept_hash(row.question.question_concept) < _HELD_OUT) == (split == "ood")]


def _local(folder: Path, split: Split) -> list[_Row]:
    by_id: dict[str, _Row] = {}
    for name in _QUESTION_FILES:
        for where, content in sources.read_json_lines(folder / name):
            row = sources.parse(_Row, content, where)
            if row.id in by_id:
                raise InputError(f"In {where}, the id {shown(row.id)} was used before; every question needs its own.")
            by_id[row.id] = row
    # The published lists name some questions twice, even in two parts: the first place counts.
    part_of: dict[str, str] = {}
    for part, name in _ID_FILES.items():
        for where, identifier in sources.read_lines(folder / name):
            if identifier not in by_id:
                raise InputError(
                    f"In {where}: no question of {folder / 'commonsense_qa'} has the id {shown(identifier)}; both "
                    "files of CommonsenseQA 1.11 must be there in full."
                )
            part_of.setdefault(identifier, part)
    chosen = {part: [by_id[key] for key, place in part_of.items() if place == part] for part in _ID_FILES}
    return _select(chosen["train"], chosen["val"] + chosen["test"], split)


def _hub(split: Split) -> list[_Row]:
    part = "train" if split == "train" else "validation"
    rows = []
    for index, given in enumerate(sources.from_hub(NAME, HUB_REPO, HUB_CONFIG, HUB_REVISION, part)):
        where = f"row {index} of {part}, {HUB_REPO}"
        try:
            labels, texts = given["choices"]["label"], given["choices"]["text"]
            choices = [{"label": label, "text": text} for label, text in zip(labels, texts, strict=True)]
            # There the question is the stem.
            question = {"stem": given["question"], "question_concept": given["question_concept"], "choices": choices}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"In {where}: not a question in CommonsenseQA's format ({error}); is the revision {HUB_REVISION}?"
            ) from error
        rows.append(sources.parse(_Row, given | {"question": question}, where))
    return _select(rows, rows, split)


def _offline(split: Split) -> list[_Row]:
    first, last = {"ood": (0, _OWN_OOD), "id": (_OWN_OOD, _OWN_ID), "train": (_OWN_ID, 256)}[split]
    rows = [sources.parse(_Row, content, where) for where, content in sources.read_json_lines(_OWN_FILE)]
    return [row for row in rows if first <= concept_hash(row.question.question_concept) < last]


def _ask(row: _Row, split: Split, source: Source, form: str, turn: int = 0) -> Example:
    """Write a question with its choices moved up by ``turn`` places."""
    prompt, stem = "Question: ", row.question.stem
    named = re.finditer(rf"(?<!\w){re.escape(row.question.question_concept)}(?!\w)", stem, re.IGNORECASE)
    spans = [(len(prompt) + match.start(), len(prompt) + match.end()) for match in named]
    prompt += stem
    right = LETTERS.index(row.answerKey)
    answer = row.question.choices[right].text
    for place, letter in enumerate(LETTERS):
        index = (place + turn) % len(LETTERS)
        prompt += f"\n{letter}. "
        # By its place, not its text: some published questions offer the same text twice.
        if index == right:
            spans.append((len(prompt), len(prompt) + len(answer)))
        prompt += row.question.choices[index].text
    target = LETTERS[(right - turn) % len(LETTERS)] if form == "letter" else answer
    return Example(f"{prompt}\nAnswer:", f" {target}", split, source, tuple(spans))
