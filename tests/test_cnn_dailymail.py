import csv
import hashlib
import re

import datasets
import pytest

from ridge_utils.errors import InputError
from ridge_utils.tasks import SPLITS, cnn_dailymail
from ridge_utils.tasks.cnn_dailymail import AGENCY, load

ENDING = "\nHighlights:"


@pytest.fixture(scope="module")
def items():
    with cnn_dailymail._ITEMS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def every(**options):
    return {split: load(split, None, **options) for split in SPLITS}


def article(example):
    assert example.prompt.endswith(ENDING)
    return example.prompt.removesuffix(ENDING)


def test_no_two_own_items_share_a_run_of_12_words(items):
    owner = {}
    for item in items:
        words = re.findall(r"\w+", f"{item['article']} {item['highlights']}".lower())
        for run in zip(*(words[start:] for start in range(12)), strict=False):
            assert owner.setdefault(run, item["id"]) == item["id"], run


def test_an_example_is_an_article_that_its_highlights_continue(items):
    texts = {item["article"]: item for item in items}
    for split, examples in every().items():
        for example in examples:
            item = texts[article(example)]
            assert example.target == " " + item["highlights"].replace("\n", " ")
            assert (example.split, example.source) == (split, "synthetic")
            assert (item["outlet"] == AGENCY) == (split == "ood")
            if split != "ood":
                assert (hashlib.sha256(item["id"].encode()).digest()[0] < 128) == (split == "train")


def test_max_words_cuts_between_words():
    whole = {example.target: article(example) for example in load("train", None, max_words=None)}
    for example in load("train", None, max_words=20):
        assert len(article(example).split()) == 20
        assert whole[example.target].startswith(article(example) + " ")
    assert every(max_words=160) == every(max_words=None) == every()


def test_white_space_is_normalised_and_cut_articles_that_agree_count_once(write):
    folder = write({"a.csv": [("1", "(CNN)  A\n\tship  sank here", "It sank .\n\n No one  drowned ."),
                              ("2", "(CNN) A ship sailed", "It sailed .")]})  # fmt: skip
    examples = load("ood", None, data_dir=folder)
    assert {(e.prompt, e.target) for e in examples} == {
        ("(CNN) A ship sank here\nHighlights:", " It sank . No one drowned ."),
        ("(CNN) A ship sailed\nHighlights:", " It sailed ."),
    }
    assert [e.target for e in load("ood", None, data_dir=folder, max_words=3)] == [" It sank . No one drowned ."]


def test_signal_spans_are_the_content_words_of_the_highlights():
    text = "The ferry's crew said that FERRIES sank in 1987, far from Lindén; the Ferry-man and ferryman swam."
    spans = cnn_dailymail.signal_spans(text, "They said the ferry of LINDÉN sank in 1987, that is far from the sea.")
    assert [text[start:end] for start, end in spans] == ["ferry", "sank", "1987", "Lindén", "Ferry"]
    assert cnn_dailymail.signal_spans(text, "It was so.") == ()


@pytest.fixture
def write(tmp_path):
    """Writes CSV files, given as rows or as text, into the folder that a local copy has; returns its parent."""

    def write(files):
        folder = tmp_path / "cnn_dailymail"
        folder.mkdir()
        for name, rows in files.items():
            with (folder / name).open("w", encoding="utf-8", newline="") as file:
                if isinstance(rows, str):
                    file.write(rows)
                else:
                    csv.writer(file).writerows([("id", "article", "highlights"), *rows])
        return tmp_path

    return write


def test_every_csv_file_is_read_and_an_article_stays_in_one_split(write):
    # b.csv repeats a.csv's articles under other ids, of which half would fall into the other split.
    mail = {
        name: [(f"{name}-{i}", f"Story {i} is told.", f"Told {i} .") for i in numbers]
        for name, numbers in (("b.csv", range(50, 150)), ("a.csv", range(100)))
    }
    folder = write(mail | {"notes.txt": "not read"})
    train, test = ({article(e) for e in load(split, None, data_dir=folder)} for split in ("train", "id"))
    assert len(train) + len(test) == len(train | test) == 150
    assert 50 < len(train) < 100
    assert train >= {text for key, text, _ in mail["a.csv"] if hashlib.sha256(key.encode()).digest()[0] < 128}


@pytest.mark.parametrize(("before", "split"), [(116, "ood"), (117, "train")])
def test_cnn_is_recognised_in_the_first_120_characters(write, before, split):
    folder = write({"a.csv": [("0", "x" * before + "(CNN) -- A ship sank.", "It sank .")]})
    assert hashlib.sha256(b"0").digest()[0] < 128, "the id must be one of the train half"
    assert len(load(split, None, data_dir=folder, source="local")) == 1


HEADER = "id,article,highlights\n"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no CSV file"),
        ({"a.csv": "id,article\n1,A\n"}, r"Line 1 of .*a\.csv.*'highlights'"),
        ({"a.csv": ""}, r"a\.csv is empty"),
        ({"a.csv": HEADER}, r"a\.csv has a header and no rows"),
        ({"a.csv": f"{HEADER}1,A,B\n2,,B\n"}, "line 3 of .*'article'"),
        ({"a.csv": f"{HEADER}1,A,B\n2,A\n"}, "line 3 of .*'highlights'"),
        ({"a.csv": f'{HEADER}1,A,B\n2,A," \n "\n'}, "line 4 of .*'highlights'"),
        ({"a.csv": f"{HEADER}1,(CNN) A,B\n"}, "the id split of cnn_dailymail has 0 different"),
    ],
)
def test_bad_files_are_named_with_their_line(write, files, words):
    with pytest.raises(InputError, match=words):
        load("id", None, data_dir=write(files))


def test_the_hub_gives_train_from_validation_and_id_and_ood_from_test(monkeypatch):
    def row(text):
        return {"article": text, "highlights": "It sank .\nAll swam .", "id": hashlib.sha1(text.encode()).hexdigest()}

    parts = {
        "validation": ["Mail one sank.", "(CNN) -- Two sank.", "Mail three sank."],
        "test": ["Mail four sank.", "Rome (CNN) -- Five sank.", "Mail one sank."],
    }

    def load_dataset(repo, config, *, split, revision, data_dir):
        assert (repo, config) == ("abisee/cnn_dailymail", "3.0.0")
        assert revision == "96df5e686bee6baa90b8bee7c28b81fa3fa6223d"
        return datasets.Dataset.from_list([row(text) for text in parts[split]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = every(source="hub")
    assert {split: {article(e) for e in examples} for split, examples in found.items()} == {
        "train": {"Mail one sank.", "Mail three sank."},
        "id": {"Mail four sank."},
        "ood": {"Rome (CNN) -- Five sank."},
    }
    for examples in found.values():
        for example in examples:
            assert (example.source, example.target) == ("hub", " It sank . All swam .")
            assert [example.prompt[a:b] for a, b in example.signal_spans] == ["sank"]
