"""The questions against their files read again by hand, the own set against its rules, and each way to be wrong."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import datasets
import pytest

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


def test_the_two_concepts_of_these_tests_are_on_both_sides():
    assert first_byte(HELD_OUT) < 51 <= first_byte(SEEN)


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


def test_a_question_listed_twice_belongs_to_the_first_part(folder):
    data = folder(**{"ecqa/test_ids.txt": ["t1", "v1", "v3", "v3"]})
    found = [parts(e)[0].split()[-2] for e in ecqa.load("id", None, data_dir=data)]
    assert sorted(found) == ["v1", "v3"]
    assert len(ecqa.load("train", None, data_dir=data)) == 2


def test_concepts_are_marked_as_whole_words_in_any_case_and_texts_lose_outer_spaces(folder):
    stem = "  Hat or that: is every HAT, or what a hatter makes, a (hat)? "
    choices = [{"label": label, "text": f" {text} "} for label, text in zip("ABCDE", "uvvwx", strict=True)]
    wide = row("v2", " Hat ", key="C", stem=stem, choices=choices)
    data = folder(**{"commonsense_qa/dev_rand_split.jsonl": [wide, row("v3")]})
    (example,) = ecqa.load("ood", None, data_dir=data)
    assert [example.prompt[a:b] for a, b in example.signal_spans] == ["Hat", "HAT", "hat", "v"]
    assert parts(example) == (
        stem.strip(),
        ["u", "v", "v", "w", "x"],
        "C",
    )  # the same text twice: the right one's place


def test_a_concept_that_the_stem_does_not_name_leaves_the_answer_alone(folder):
    data = folder(**{"commonsense_qa/dev_rand_split.jsonl": [row("v2", HELD_OUT, stem="What now?"), row("v3")]})
    (example,) = ecqa.load("ood", None, data_dir=data)
    assert [example.prompt[a:b] for a, b in example.signal_spans] == ["light"]


CHOICES = row("x")["question"]["choices"]
DEV, VAL = "commonsense_qa/dev_rand_split.jsonl", "ecqa/val_ids.txt"


@pytest.mark.parametrize(
    ("name", "lines", "words"),
    [
        (DEV, None, "dev_rand_split.jsonl cannot be read: No such file"),
        (VAL, None, "val_ids.txt cannot be read: No such file"),
        (DEV, [""], "dev_rand_split.jsonl is empty"),
        (VAL, ["", " "], "val_ids.txt is empty"),
        (DEV, [row("v2"), "{"], "dev_rand_split.jsonl, line 2: not JSON"),
        (DEV, [row("v2"), "", [1]], "dev_rand_split.jsonl, line 3: a row must be a JSON object"),
        (
            DEV,
            [{"id": "v2", "answerKey": "A"}],
            "line 1: 'question' must be an object with stem and choices, but is None",
        ),
        (DEV, [row(7)], "line 1: 'id' must be a text that is not empty, but is 7"),
        (DEV, [row("v2", stem=" ")], "line 1: 'stem' must be a text that is not empty, but is ' '"),
        (DEV, [row("v2", question_concept=None)], "'question_concept' must be a text that is not empty, but is None"),
        (DEV, [row("v2", choices=CHOICES[:4])], "line 1: 'choices' must be five objects with label A to E in order"),
        (DEV, [row("v2", choices=CHOICES[::-1])], "line 1: 'choices' must be five objects with label A to E in order"),
        (DEV, [row("v2", choices=[*CHOICES[:4], {"label": "E"}])], "line 1: 'choices' must be five objects"),
        (DEV, [row("v2", choices="ABCDE")], "line 1: 'choices' must be five objects"),
        (DEV, [row("v2"), row("v3", key="F")], "line 2: 'answerKey' must be one of A to E, but is 'F'"),
        (DEV, [row("v2", key="AB")], "line 1: 'answerKey' must be one of A to E, but is 'AB'"),
        (DEV, [row("v2"), row("t1")], "dev_rand_split.jsonl, line 2: the id 't1' was used before"),
        (VAL, ["v1", "v9"], r"val_ids.txt, line 2: no question of .*commonsense_qa has the id 'v9'"),
    ],
)
@pytest.mark.parametrize("split", SPLITS)
def test_a_bad_file_is_named_with_its_line(folder, name, lines, words, split):
    data = folder(**{name: lines})
    with pytest.raises(InputError, match=words):
        ecqa.load(split, None, data_dir=data)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "test"}, "no split 'test'"),
        ({"n": 0}, "integer of at least 1, but is 0"),
        ({"n": 9999}, "9999 examples were asked for, but the id split of ecqa has 210 here"),
        ({"n": 43, "rotations": 1}, "has 42 here"),
        ({"source": "web"}, "Unknown source 'web' of task 'ecqa'"),
        ({"source": "local"}, "needs the folder of the data"),
        ({"source": "hub", "data_dir": "there"}, "reads no folder"),
        ({"rotations": 0}, "rotations must be an integer from 1 to 5, but is 0"),
        ({"rotations": 6}, "rotations must be an integer from 1 to 5, but is 6"),
        ({"rotations": True}, "rotations must be an integer from 1 to 5, but is True"),
        ({"rotations": 2, "data_dir": "there"}, "rotations=2 is for the offline set; leave it out with source 'local'"),
    ],
)
def test_bad_requests(options, words):
    with pytest.raises(InputError, match=words):
        ecqa.load(**{"split": "id", "n": 1} | options)


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
    assert set(asked) == {("tau/commonsense_qa", None, ecqa.HUB_REVISION)}
    assert re.fullmatch(r"[0-9a-f]{40}", ecqa.HUB_REVISION)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"answerKey": ""}, "tau/commonsense_qa, validation row 1: 'answerKey' must be one of A to E, but is ''"),
        (
            {"choices": {"label": ["A", "B"], "text": ["x"]}},
            "validation row 1: not a question in CommonsenseQA's format",
        ),
        ({"choices": None}, "validation row 1: not a question in CommonsenseQA's format"),
    ],
)
def test_a_bad_hub_row_is_named(monkeypatch, broken, words):
    rows = [hub_row("v1"), hub_row("v2") | broken]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    with pytest.raises(InputError, match=words):
        ecqa.load("id", None, source="hub")


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route to the Hub\nand a long trace")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"tau/commonsense_qa.*no route to the Hub Check .*data_dir=FOLDER") as caught:
        ecqa.load("train", 1, source="hub")
    assert "long trace" not in str(caught.value)


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


def test_the_own_set_is_varied_and_balanced():
    assert len(OWN) == 187
    assert len({entry["question"]["stem"].lower() for entry in OWN}) == len(OWN)
    assert len({entry["question"]["question_concept"].lower() for entry in OWN}) == len(OWN)
    answers = [e["question"]["choices"]["ABCDE".index(e["answerKey"])]["text"] for e in OWN]
    assert len(set(answers)) == len(OWN)
    assert len({answer.split()[0] for answer in answers}) > 180
    assert set(Counter(entry["answerKey"] for entry in OWN).values()) == {37, 38}


def test_the_own_splits_follow_the_hash_and_share_no_question():
    concepts = {entry["question"]["stem"]: entry["question"]["question_concept"].lower() for entry in OWN}
    stems = {split: {parts(e)[0] for e in ecqa.load(split, None)} for split in SPLITS}
    assert {split: len(found) for split, found in stems.items()} == {"train": 94, "id": 42, "ood": 51}
    assert set().union(*stems.values()) == set(concepts)
    for stem, concept in concepts.items():
        expected = ["ood", "id", "train", "train"][first_byte(concept) // 64]
        assert [split for split in SPLITS if stem in stems[split]] == [expected], stem


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


def test_draws_are_seeded_and_different():
    once = ecqa.load("id", 60, 3)
    assert once == ecqa.load("id", 60, 3)
    assert once != ecqa.load("id", 60, 4)
    assert len({e.prompt for e in once}) == 60
    assert sorted(e.prompt for e in ecqa.load("id", None, 1)) == sorted(e.prompt for e in ecqa.load("id", None, 2))


def test_the_data_are_these_on_every_machine():
    digest = hashlib.sha256("".join(e.prompt + e.target for e in ecqa.load("train", 20, 0)).encode()).hexdigest()
    assert digest[:16] == "a07e97c885dfa866"


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
