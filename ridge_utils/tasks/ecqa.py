"""ECQA (paper, Section 4.1): questions of everyday knowledge with five choices, answered with the text of one.

ECQA (Aggarwal et al. 2021) explains the answers of CommonsenseQA (Talmor et al. 2019). Its questions are
CommonsenseQA's, and its explanations are not used here:

    Question: {stem}
    A. {choice}
    …
    E. {choice}
    Answer:   →   " {text of the right choice}"

The paper does not say whether the target is the letter or the text. It is about generation, so the text is taken. Nor
does it say what is out-of-distribution (OOD) here. A shift of topic is taken: every question is about a concept, and a
fifth of the concepts is held out by a hash. Training never asks about those, and OOD asks about nothing else.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ridge_utils.errors import InputError
from ridge_utils.tasks import sources
from ridge_utils.tasks.base import Example, Source, Split, check_request

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


@dataclass(frozen=True)
class _Question:
    concept: str
    stem: str
    choices: tuple[str, ...]
    answer: int


def load(
    split: Split,
    n: int | None,
    seed: int = 0,
    *,
    data_dir: str | Path | None = None,
    source: sources.Origin = "auto",
    rotations: int = 5,
) -> list[Example]:
    """Draw ``n`` different questions.

    Args:
        split: ``train``, ``id`` or ``ood``.
        n: number of examples; None for all.
        seed: seed of the draw and of the order; the same seed gives the same examples on every machine.
        data_dir: folder of the published files, laid out as above.
        source: ``local``, ``hub``, ``offline``, or ``auto``: local where ``data_dir`` is given, else offline.
        rotations: offline only. Each question is asked with its choices rotated by 0, …, rotations - 1 places, 1 to 5;
            all rotations of a question are in the same split.

    Returns:
        Examples whose ``signal_spans`` cover the concept wherever the question names it, and the right choice's text.

    Raises:
        InputError: an argument out of range, a file that is missing or wrong, or fewer examples than asked for.
    """
    check_request(NAME, split, n)
    origin = sources.resolve(NAME, source, data_dir)
    if isinstance(rotations, bool) or not isinstance(rotations, int) or not 1 <= rotations <= len(LETTERS):
        raise InputError(f"rotations must be an integer from 1 to {len(LETTERS)}, but is {rotations!r}.")
    if origin != "offline":
        if rotations != 5:
            raise InputError(f"rotations={rotations} is for the offline set; leave it out with source {origin!r}.")
        questions = _local(Path(data_dir).expanduser(), split) if data_dir else _hub(split)
        kind: Source = "local" if data_dir else "hub"
        return sources.draw(NAME, split, [_ask(question, split, kind) for question in questions], n, seed)
    asked = [_ask(question, split, "synthetic", turn) for question in _own(split) for turn in range(rotations)]
    return sources.draw(NAME, split, asked, n, seed)


def concept_hash(concept: str) -> int:
    """A concept's first byte under SHA-256, in [0, 255]: the same on every machine; case and outer spaces ignored."""
    return hashlib.sha256(concept.strip().lower().encode()).digest()[0]


def _select(training: Iterable[_Question], evaluation: Iterable[_Question], split: Split) -> list[_Question]:
    """Training without the held-out concepts, or the questions of evaluation without them (ID) or about them (OOD)."""
    candidates = training if split == "train" else evaluation
    return [question for question in candidates if (concept_hash(question.concept) < _HELD_OUT) == (split == "ood")]


def _local(folder: Path, split: Split) -> list[_Question]:
    by_id: dict[str, _Question] = {}
    for name in _QUESTION_FILES:
        path = folder / name
        for line, row in sources.read_json_lines(path):
            where = f"{path}, line {line}"
            question = _question(row, where)
            if row["id"] in by_id:
                raise InputError(f"{where}: the id {row['id']!r} was used before; every question needs its own.")
            by_id[row["id"]] = question
    chosen: dict[str, list[_Question]] = {part: [] for part in _ID_FILES}
    seen: set[str] = set()
    for part, name in _ID_FILES.items():
        path = folder / name
        for line, identifier in sources.read_lines(path):
            if identifier not in by_id:
                raise InputError(
                    f"{path}, line {line}: no question of {folder / 'commonsense_qa'} has the id {identifier!r}; both "
                    "files of CommonsenseQA 1.11 must be there in full."
                )
            # The published lists name some questions twice, even in two parts: the first place counts.
            if identifier not in seen:
                seen.add(identifier)
                chosen[part].append(by_id[identifier])
    return _select(chosen["train"], chosen["val"] + chosen["test"], split)


def _hub(split: Split) -> list[_Question]:
    part = "train" if split == "train" else "validation"
    questions = []
    for index, row in enumerate(sources.from_hub(NAME, HUB_REPO, HUB_CONFIG, HUB_REVISION, part)):
        where = f"{HUB_REPO}, {part} row {index}"
        try:
            labels, texts = row["choices"]["label"], row["choices"]["text"]
            inner = {
                "stem": row["question"],
                "question_concept": row["question_concept"],
                "choices": [{"label": label, "text": text} for label, text in zip(labels, texts, strict=True)],
            }
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{where}: not a question in CommonsenseQA's format ({error}); is the revision {HUB_REVISION}?"
            ) from error
        questions.append(_question({"id": row.get("id"), "answerKey": row.get("answerKey"), "question": inner}, where))
    return _select(questions, questions, split)


def _own(split: Split) -> list[_Question]:
    questions = [_question(row, f"{_OWN_FILE.name}, line {line}") for line, row in sources.read_json_lines(_OWN_FILE)]
    return [question for question in questions if _own_split(question.concept) == split]


def _own_split(concept: str) -> Split:
    place = concept_hash(concept)
    return "ood" if place < _OWN_OOD else "id" if place < _OWN_ID else "train"


def _question(row: dict[str, Any], where: str) -> _Question:
    """Check one row in CommonsenseQA's format."""
    inner = row.get("question")
    if not isinstance(inner, dict):
        raise InputError(f"{where}: 'question' must be an object with stem and choices, but is {inner!r}.")
    for field, value in [
        ("id", row.get("id")),
        ("stem", inner.get("stem")),
        ("question_concept", inner.get("question_concept")),
    ]:
        if not _is_text(value):
            raise InputError(f"{where}: {field!r} must be a text that is not empty, but is {value!r}.")
    choices = inner.get("choices")
    if not (
        isinstance(choices, list)
        and all(isinstance(choice, dict) and _is_text(choice.get("text")) for choice in choices)
        and [choice.get("label") for choice in choices] == list(LETTERS)
    ):
        raise InputError(
            f"{where}: 'choices' must be five objects with label A to E in order and a text, but is {choices!r}."
        )
    key = row.get("answerKey")
    if not (isinstance(key, str) and key in list(LETTERS)):
        raise InputError(f"{where}: 'answerKey' must be one of A to E, but is {key!r}.")
    texts = tuple(choice["text"].strip() for choice in choices)
    return _Question(inner["question_concept"].strip(), inner["stem"].strip(), texts, LETTERS.index(key))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _ask(question: _Question, split: Split, source: Source, turn: int = 0) -> Example:
    """Write a question with its choices moved up by ``turn`` places."""
    prompt = "Question: "
    named = re.finditer(rf"(?<!\w){re.escape(question.concept)}(?!\w)", question.stem, re.IGNORECASE)
    spans = [(len(prompt) + match.start(), len(prompt) + match.end()) for match in named]
    prompt += question.stem
    answer = question.choices[question.answer]
    for place, letter in enumerate(LETTERS):
        index = (place + turn) % len(LETTERS)
        prompt += f"\n{letter}. "
        # By its place, not its text: some published questions offer the same text twice.
        if index == question.answer:
            spans.append((len(prompt), len(prompt) + len(answer)))
        prompt += question.choices[index]
    return Example(f"{prompt}\nAnswer:", f" {answer}", split, source, tuple(spans))
