"""The questions against their files read again by hand, the own set against its rules, and each way to be wrong."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from scipy import stats

from ridge_utils.errors import InputError
from ridge_utils.tasks import ecqa

SPLITS = ("train", "id", "ood")
OWN = [json.loads(line) for line in Path(ecqa.__file__).with_name("ecqa_questions.jsonl").read_text().splitlines()]
PROMPT = re.compile(r"Question: (.+)\nA\. (.+)\nB\. (.+)\nC\. (.+)\nD\. (.+)\nE\. (.+)\nAnswer:")


def first_byte(concept):
    return int(hashlib.sha256(concept.encode("utf-8")).hexdigest()[:2], 16)


def parts(example):
    """Stem, choices and the letter of the right one, read back from the prompt and the marked span."""
    stem, *choices = PROMPT.fullmatch(example.prompt).groups()
    start, end = example.signal_spans[-1]
    assert " " + example.prompt[start:end] == example.target
    return stem, choices, example.prompt[start - 3]


def row(identifier, concept="lamp", key="B", **changes):
    texts = ["oil", "light", "rain", "cheese", "sand"]
    question = {
        "stem": f"What does the {concept} number {identifier} give?",
        "question_concept": concept,
        "choices": [{"label": label, "text": text} for label, text in zip("ABCDE", texts, strict=True)],
    }
    return {"id": identifier, "answerKey": key, "question": question | changes}


# One concept of each kind, found with first_byte.
SEEN, HELD_OUT = "lamp", "hat"


@pytest.fixture
def folder(tmp_path):
    """A folder in the published layout; a changed file is given by its path in it."""

    def write(**changes):
        rows = [row("t1"), row("t2"), row("t3", HELD_OUT), row("v1"), row("v2", HELD_OUT), row("v3")]
        files = {
            "commonsense_qa/train_rand_split.jsonl": rows[:4],
            "commonsense_qa/dev_rand_split.jsonl": rows[4:],
            "ecqa/train_ids.txt": ["t1", "t2", "t3"],
            "ecqa/val_ids.txt": ["v1", "v2"],
            "ecqa/test_ids.txt": ["v3"],
        }
        for name, lines in (files | changes).items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            if lines is not None:
                text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
                path.write_text(text, encoding="utf-8")
        return tmp_path

    return write


def test_the_prompt_and_its_spans_are_these(folder):
    (example,) = ecqa.load("ood", None, data_dir=folder())
    assert example.prompt == (
        "Question: What does the hat number v2 give?\nA. oil\nB. light\nC. rain\nD. cheese\nE. sand\nAnswer:"
    )
    assert example.target == " light"
    assert example.source == "local"
    assert [example.prompt[a:b] for a, b in example.signal_spans] == ["hat", "light"]


def test_the_local_splits_follow_the_lists_and_the_concepts(folder):
    data = folder()
    found = {split: {parts(e)[0].split()[-2] for e in ecqa.load(split, None, data_dir=str(data))} for split in SPLITS}
    assert found == {"train": {"t1", "t2"}, "id": {"v1", "v3"}, "ood": {"v2"}}


def test_concepts_are_marked_as_whole_words_in_any_case_and_texts_lose_outer_spaces(folder):
    stem = "  Hat or that: is every HAT, or what a hatter makes, a (hat)? "
    choices = [{"label": label, "text": f" {text} "} for label, text in zip("ABCDE", "uvvwx", strict=True)]
    wide = row("v2", " Hat ", key="C", stem=stem, choices=choices)
    data = folder(**{"commonsense_qa/dev_rand_split.jsonl": [wide, row("v3")]})
    (example,) = ecqa.load("ood", None, data_dir=data)
    assert [example.prompt[a:b] for a, b in example.signal_spans] == ["Hat", "HAT", "hat", "v"]
    # Of the same text twice the right one's place is marked.
    assert parts(example) == (stem.strip(), ["u", "v", "v", "w", "x"], "C")


CHOICES = row("x")["question"]["choices"]
DEV, VAL = "commonsense_qa/dev_rand_split.jsonl", "ecqa/val_ids.txt"


@pytest.mark.parametrize(
    ("name", "lines", "words"),
    [
        (VAL, None, "val_ids.txt cannot be read"),
        (VAL, ["", " "], "val_ids.txt is empty"),
        (VAL, ["v1", "v9"], "line 2 of .*val_ids.txt.*'v9'"),
        (DEV, [row("v2"), "{"], "no JSON in line 2 of .*dev_rand_split.jsonl"),
        (DEV, [row("v2"), "", [1]], "Line 3 of "),
        (DEV, [{"id": "v2", "answerKey": "A"}], "Line 1 of .*'question'"),
        (DEV, [row(7)], "line 1 of .*'id' .* 7"),
        (DEV, [row("v2", stem=" ")], "line 1 of .*'stem'"),
        *(
            (DEV, [row("v2", choices=choices)], "line 1 of .*'choices'")
            for choices in (CHOICES[:4], CHOICES[::-1], [*CHOICES[:4], {"label": "E"}], "ABCDE")
        ),
        (DEV, [row("v2"), row("v3", key="F")], "line 2 of .*'answerKey' .*'F'"),
        (DEV, [row("v2"), row("t1")], "line 2 of .*dev_rand_split.jsonl.*'t1'"),
    ],
)
def test_a_bad_file_is_named_with_its_line(folder, name, lines, words):
    with pytest.raises(InputError, match=words):
        ecqa.load("train", None, data_dir=folder(**{name: lines}))


def hub_row(identifier, concept=SEEN):
    local = row(identifier, concept)
    choices = local["question"]["choices"]
    return {
        "id": identifier,
        "question": local["question"]["stem"],
        "question_concept": concept,
        "choices": {"label": [c["label"] for c in choices], "text": [c["text"] for c in choices]},
        "answerKey": local["answerKey"],
    }


def test_the_hub_gives_what_the_local_files_give(monkeypatch, folder):
    hub = {
        "train": [hub_row("t1"), hub_row("t2"), hub_row("t3", HELD_OUT)],
        "validation": [hub_row("v1"), hub_row("v2", HELD_OUT), hub_row("v3")],
    }
    asked = []

    def load_dataset(repo, config=None, *, split, revision, data_dir):
        asked.append((repo, config, revision))
        return datasets.Dataset.from_list(hub[split])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = folder()
    for split in SPLITS:
        found = ecqa.load(split, None, source="hub")
        local = ecqa.load(split, None, data_dir=data)
        assert {(e.prompt, e.target, e.signal_spans) for e in found} == {
            (e.prompt, e.target, e.signal_spans) for e in local
        }
        assert {(e.split, e.source) for e in found} == {(split, "hub")}
    hub["validation"][1] |= {"choices": {"label": ["A", "B"], "text": ["x", "y"]}}
    with pytest.raises(InputError, match="row 1 of validation, tau/commonsense_qa, the field 'choices'"):
        ecqa.load("id", None, source="hub")
    assert set(asked) == {("tau/commonsense_qa", None, ecqa.HUB_REVISION)}
    assert re.fullmatch(r"[0-9a-f]{40}", ecqa.HUB_REVISION)


def test_the_own_set_is_well_formed():
    assert [question["id"] for question in OWN] == [f"own-{number:03d}" for number in range(1, len(OWN) + 1)]
    for entry in OWN:
        stem, concept = entry["question"]["stem"], entry["question"]["question_concept"]
        choices = [choice["text"] for choice in entry["question"]["choices"]]
        answer = choices["ABCDE".index(entry["answerKey"])]
        assert 8 <= len(stem.split()) <= 25, stem
        assert re.search(rf"\b{concept}\b", stem, re.IGNORECASE), stem
        assert not re.search(rf"\b{answer}\b", stem, re.IGNORECASE), f"the stem gives the answer away: {stem}"
        assert len({choice.lower() for choice in choices}) == 5, choices
        assert all(choice == choice.strip() and 1 <= len(choice.split()) <= 3 for choice in choices), choices


def test_rotations_move_the_choices_and_nothing_else():
    written = {entry["question"]["stem"]: entry for entry in OWN}
    asked = ecqa.load("train", None)
    assert len(set(asked)) == len(asked) == 5 * 94
    assert {e.source for e in asked} == {"synthetic"}
    letters = Counter()
    for example in asked:
        stem, choices, letter = parts(example)
        original = [choice["text"] for choice in written[stem]["question"]["choices"]]
        assert choices in [original[k:] + original[:k] for k in range(5)]
        assert example.target == " " + original["ABCDE".index(written[stem]["answerKey"])]
        assert choices["ABCDE".index(letter)] == example.target[1:]
        letters[stem, letter] += 1
    assert set(letters.values()) == {1}, "every question has its answer once at every letter"
    once = ecqa.load("train", None, rotations=1)
    assert len(once) == 94
    for example in once:
        stem, choices, letter = parts(example)
        assert choices == [choice["text"] for choice in written[stem]["question"]["choices"]]
        assert letter == written[stem]["answerKey"]
    assert set(ecqa.load("train", None, rotations=2)) < set(asked)


def test_letters_are_the_answers_of_the_same_questions(folder):
    def both(split, **where):
        return zip(*(ecqa.load(split, None, **where, answer=form) for form in ("text", "letter")), strict=True)

    for where in ({}, {"data_dir": folder()}):
        for text, letter in (pair for split in SPLITS for pair in both(split, **where)):
            assert replace(letter, target=text.target) == text
            assert letter.target == " " + parts(text)[2]
    for text, letter in zip(ecqa.load("id", 20, 3), ecqa.load("id", 20, 3, answer="letter"), strict=True):
        assert letter.prompt == text.prompt
    # Not rotated, they are the file's own.
    keys = {entry["question"]["stem"]: entry["answerKey"] for entry in OWN}
    for example in ecqa.load("ood", None, rotations=1, answer="letter"):
        assert example.target == " " + keys[PROMPT.fullmatch(example.prompt)[1]]


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def published(real_data):
    """CommonsenseQA's rows by id, and ECQA's three lists, read without the package."""
    files = ("train_rand_split.jsonl", "dev_rand_split.jsonl")
    rows = {r["id"]: r for name in files for r in read(real_data / "commonsense_qa" / name)}
    lists = [(real_data / "ecqa" / f"{part}_ids.txt").read_text().split() for part in ("train", "val", "test")]
    return rows, lists


@pytest.mark.parametrize(("split", "count"), [("train", 6072), ("id", 2567), ("ood", 674)])
def test_the_real_splits_equal_a_reading_by_hand(real_data, published, split, count):
    rows, (train, val, test) = published
    ids = set(train) if split == "train" else (set(val) | set(test)) - set(train)
    expected = set()
    for entry in (rows[i] for i in ids):
        question = entry["question"]
        if (first_byte(question["question_concept"].strip().lower()) < 51) == (split == "ood"):
            texts = {choice["label"]: choice["text"].strip() for choice in question["choices"]}
            lines = [f"Question: {question['stem'].strip()}", *(f"{k}. {texts[k]}" for k in "ABCDE"), "Answer:"]
            expected.add(("\n".join(lines), " " + texts[entry["answerKey"]]))
    found = ecqa.load(split, None, data_dir=real_data)
    assert len(found) == len(expected) == count
    assert {(e.prompt, e.target) for e in found} == expected
    assert all(parts(e) for e in found)


def test_real_letters_are_the_published_keys_and_about_a_fifth_each(real_data, published):
    rows, _ = published
    keys = {entry["question"]["stem"].strip(): entry["answerKey"] for entry in rows.values()}
    assert len(keys) == len(rows)
    for split in SPLITS:
        found = ecqa.load(split, None, data_dir=real_data, answer="letter")
        assert all(e.target == " " + keys[PROMPT.fullmatch(e.prompt)[1]] for e in found)
        assert stats.chisquare(list(Counter(e.target for e in found).values())).pvalue > 0.05


@pytest.mark.slow
def test_the_published_lists_overlap_but_the_splits_do_not(real_data, published):
    rows, (train, val, test) = published
    assert (len(train), len(val), len(test)) == (7598, 1090, 2194)
    counts = Counter([*train, *val, *test])
    assert (len(counts), sum(c > 1 for c in counts.values())) == (10839, 36)
    stems = {split: {parts(e)[0] for e in ecqa.load(split, None, data_dir=real_data)} for split in SPLITS}
    assert not stems["train"] & stems["id"] | stems["train"] & stems["ood"] | stems["id"] & stems["ood"]
    concept = {r["question"]["stem"].strip(): r["question"]["question_concept"].strip().lower() for r in rows.values()}
    assert not {concept[s] for s in stems["train"] | stems["id"]} & {concept[s] for s in stems["ood"]}


def test_no_own_question_is_taken_from_the_real_ones(published):
    def runs(stem):
        words = re.findall(r"\w+", stem.lower())
        return {tuple(words[k : k + 8]) for k in range(len(words) - 7)}

    rows, _ = published
    real = {entry["question"]["stem"].strip().lower() for entry in rows.values()}
    real_runs = set().union(*(runs(stem) for stem in real))
    for entry in OWN:
        stem = entry["question"]["stem"]
        assert stem.lower() not in real
        assert not runs(stem) & real_runs, f"shares eight words with a published question: {stem}"
