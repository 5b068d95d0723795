import json
import re

import pytest

from ridge_utils import tasks
from ridge_utils.errors import InputError
from ridge_utils.tasks import synthetic_arithmetic

ELEMENT = re.compile(r"S(\d+) N(\d+)")


def signals(example):
    return [int(s) for s, _ in ELEMENT.findall(example.prompt)] + [int(example.target)]


def noise(example):
    return tuple(int(n) for _, n in ELEMENT.findall(example.prompt))


@pytest.mark.parametrize("split", ["train", "id"])
def test_id_sequences_follow_the_rule_modulo_13(split):
    for example in tasks.load("synthetic_arithmetic", split, 200):
        s = signals(example)
        step = (s[1] - s[0]) % 13
        assert step != 0
        assert s == [(s[0] + t * step) % 13 for t in range(10)]
        assert example.prompt.endswith(" S")
        assert example.split == split


def test_ood_sequences_follow_some_rule_with_an_allowed_modulus():
    moduli = set()
    for example in tasks.load("synthetic_arithmetic", "ood", 400):
        s = signals(example)
        fitting = {
            k for k in range(5, 26)
            if k != 13 and max(s) < k and s == [(s[0] + t * (s[1] - s[0])) % k for t in range(10)]
        }  # fmt: skip
        assert fitting
        if len(fitting) == 1:
            moduli |= fitting
    assert 13 not in moduli
    assert len(moduli) == 20, "every modulus should turn up among 400 sequences"


def test_training_and_evaluation_are_disjoint_whatever_the_seeds():
    train = {
        e.prompt for seed in range(3) for e in tasks.load("synthetic_arithmetic", "train", 2000, seed, noise_max=1)
    }
    test = {e.prompt for seed in range(3) for e in tasks.load("synthetic_arithmetic", "id", 2000, seed, noise_max=1)}
    assert not train & test
    assert not {noise(e) for e in tasks.load("synthetic_arithmetic", "train", 2000)} & {
        noise(e) for split in ("id", "ood") for e in tasks.load("synthetic_arithmetic", split, 2000)
    }


def test_examples_are_different_and_the_same_for_the_same_seed():
    once, again = (tasks.load("synthetic_arithmetic", "ood", 500, 7) for _ in range(2))
    assert once == again
    assert len({e.prompt for e in once}) == 500
    assert once != tasks.load("synthetic_arithmetic", "ood", 500, 8)


def test_the_data_are_these_on_every_machine():
    first = tasks.load("synthetic_arithmetic", "train", 1, seed=0)[0]
    assert first.prompt == "S12 N2 S5 N4 S11 N8 S4 N7 S10 N9 S3 N2 S9 N7 S2 N1 S8 N1 S"
    assert first.target == "1"


def test_spans_cover_the_signals():
    for example in tasks.load("synthetic_arithmetic", "ood", 50):
        texts = [example.prompt[a:b] for a, b in example.signal_spans]
        assert texts == [f"S{s}" for s in signals(example)[:-1]]


def test_noise_has_the_range_asked_for():
    values = {v for e in tasks.load("synthetic_arithmetic", "id", 300, noise_max=3) for v in noise(e)}
    assert values == {0, 1, 2, 3}


def test_holdout_keeps_signal_pairs_out_of_training():
    def pairs(split):
        found = (signals(e) for e in tasks.load("synthetic_arithmetic", split, 3000, holdout=0.25))
        return {(s[0], (s[1] - s[0]) % 13) for s in found}

    assert pairs("id") == synthetic_arithmetic.held_out_pairs(0.25)
    assert len(pairs("id")) == 39
    assert len(pairs("train")) == 156 - 39
    assert not pairs("id") & pairs("train")


def test_a_small_task_counts_what_it_has_exactly():
    with pytest.raises(InputError, match=r"the id split of synthetic_arithmetic has (\d+)") as caught:
        tasks.load("synthetic_arithmetic", "id", 10**9, noise_max=1)
    available = int(re.search(r"has (\d+)", str(caught.value)).group(1))
    assert len(tasks.load("synthetic_arithmetic", "id", available, noise_max=1)) == available


@pytest.fixture
def own_task(tmp_path):
    def write(*rows):
        path = tmp_path / "own.jsonl"
        path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8")
        return str(path)

    return write


def test_every_task_that_comes_with_the_package_gives_its_three_splits_without_a_network():
    assert tasks.names() == ["clutrr", "cnn_dailymail", "ecqa", "synthetic_arithmetic"]
    for name in tasks.names():
        found = {split: tasks.load(name, split, 2) for split in tasks.SPLITS}
        assert all(e.split == split and e.source == "synthetic" for split, two in found.items() for e in two), name
        assert len({e.prompt for two in found.values() for e in two}) == 6, name
        assert tasks.title(name) == name


def test_an_empty_data_folder_is_none_at_all():
    assert tasks.load("synthetic_arithmetic", "id", 2, data_dir="") == tasks.load("synthetic_arithmetic", "id", 2)


def test_own_task_from_a_file(own_task):
    rows = [{"prompt": f"{i} + 1 =", "target": f" {i + 1}", "split": "id", "signal_spans": [[0, 1]]} for i in range(9)]
    path = own_task(*rows, {"prompt": "a\u2028b", "target": "c", "split": "train"}, "")
    examples = tasks.load(path, "id", 5, seed=1)
    assert {e.target for e in examples} <= {r["target"] for r in rows}
    assert all(e.source == "own" and e.signal_spans == ((0, 1),) for e in examples)
    assert examples == tasks.load(path, "id", 5, seed=1)
    assert len(set(tasks.load(path, "id", 9))) == 9
    assert set(tasks.load(path, "id", None)) == set(tasks.load(path, "id", 9))
    assert tasks.load(path, "train", 1)[0].prompt == "a\u2028b"
    assert tasks.title(path) == "own.jsonl"


GOOD = {"prompt": "ab", "target": "c", "split": "id"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([GOOD, "{"], "own.jsonl, line 2: not JSON"),
        ([[1]], "line 1: a row must be a JSON object"),
        ([GOOD | {"extra": 1}], "line 1: unknown field 'extra'; the fields are prompt, target, split, signal_spans"),
        ([{"prompt": "a", "split": "id"}], "line 1: 'target' must be a text that is not empty, but is None"),
        ([GOOD | {"prompt": ""}], "'prompt' must be a text that is not empty"),
        ([GOOD | {"split": "test"}], "'split' must be one of train, id, ood, but is 'test'"),
        ([GOOD | {"signal_spans": [[0, 3]]}], r"0 <= start < end <= 2 \(the prompt's length\), but is \[\[0, 3\]\]"),
        ([], "is empty"),
        ([GOOD, GOOD], "2 examples were asked for, but .* has 1 different ones in the id split"),
    ],
)
def test_a_bad_file_is_named_with_its_line(own_task, rows, words):
    path = own_task(*rows)
    with pytest.raises(InputError, match=words):
        tasks.load(path, "id", 2)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (
            ("sums", "id", 1),
            {},
            "Unknown task 'sums'; choose one of clutrr, cnn_dailymail, ecqa, synthetic_arithmetic, or give the path",
        ),
        (("synthetic_arithmetic", "test", 1), {}, "no split 'test'; choose one of train, id, ood"),
        (("synthetic_arithmetic", "id", 0), {}, "integer of at least 1, but is 0"),
        (("synthetic_arithmetic", "id", 2.5), {}, "integer of at least 1, but is 2.5"),
        (("synthetic_arithmetic", "id", 1), {"hold": 1}, "no option 'hold'; its options are holdout, noise_max"),
        (("synthetic_arithmetic", "id", 1), {"holdout": 1.0}, "a number of at least 0 and less than 1, but is 1.0"),
        (
            ("synthetic_arithmetic", "id", 1),
            {"holdout": "high"},
            "a number of at least 0 and less than 1, but is 'high'",
        ),
        (("synthetic_arithmetic", "id", 1), {"holdout": 0.001}, "holds out 0 of 156 pairs"),
        (("synthetic_arithmetic", "id", 1), {"noise_max": -1}, "noise_max must be an integer of at least 0, but is -1"),
        (("no/such.jsonl", "id", 1), {}, "no/such.jsonl cannot be read: No such file"),
        (("no/such.jsonl", "id", 1), {"holdout": 0.1}, "no option 'holdout'; it takes none"),
        (
            ("no/such.jsonl", "id", 1),
            {"data_dir": "x"},
            "'such.jsonl' reads no data folder, but data_dir='x' was given",
        ),
        (("synthetic_arithmetic", "id", 1), {"data_dir": "x"}, "'synthetic_arithmetic' reads no data folder"),
    ],
)
def test_bad_requests(arguments, options, words):
    with pytest.raises(InputError, match=words):
        tasks.load(*arguments, **options)
