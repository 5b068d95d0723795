import json
import pkgutil
import re
from pathlib import Path

import datasets
import pytest

from ridge_utils import tasks
from ridge_utils.errors import InputError
from ridge_utils.tasks import synthetic_arithmetic

NATURAL = ("clutrr", "ecqa", "cnn_dailymail")


def test_a_task_has_its_module_its_entry_and_its_row_in_the_book():
    book = (Path(__file__).parent.parent / "book" / "method.md").read_text(encoding="utf-8")
    for module in pkgutil.iter_modules(tasks.__path__):
        source = Path(tasks.__path__[0], f"{module.name}.py").read_text(encoding="utf-8")
        if name := re.search(r'^NAME = "(\w+)"', source, re.M):
            assert name[1] in tasks.TASKS, f"tasks/{module.name}.py is missing in TASKS of tasks/__init__.py"
            assert f"`{name[1]}`" in book, f"book/method.md does not say what the task {name[1]} is"


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_gives_its_three_splits_without_a_network(name):
    found = {split: [tasks.load(name, split, 20, seed) for seed in (0, 0, 1)] for split in tasks.SPLITS}
    prompts = {split: {e.prompt for draw in draws for e in draw} for split, draws in found.items()}
    for split, (first, again, other) in found.items():
        assert first == again != other
        assert len({e.prompt for e in first}) == 20
        assert all(e.split == split and e.source == "synthetic" for e in first + other)
        assert all(0 <= a < b <= len(e.prompt) for e in first for a, b in e.signal_spans)
    assert not prompts["train"] & prompts["id"] | prompts["train"] & prompts["ood"] | prompts["id"] & prompts["ood"]


@pytest.mark.parametrize(
    ("name", "digests"),
    [
        ("clutrr", "aa1ebb1a c0afc78e dbb2645f"),
        ("cnn_dailymail", "405ca608 495330b2 5279d782"),
        ("ecqa", "7429fe50 32166b4b 16348095"),
        ("synthetic_arithmetic", "0e128055 b39f5e74 d6508d27"),
    ],
)
def test_the_data_are_these_on_every_machine(name, digests):
    found = [tasks.digest(tasks.load(name, split, 20))[:8] for split in tasks.SPLITS]
    assert found == digests.split()
    assert tasks.digest(tasks.load(name, "id", 20)[::-1])[:8] != found[1], "the order counts"


ELEMENT = re.compile(r"S(\d+) N(\d+)")


def signals(example):
    return [int(s) for s, _ in ELEMENT.findall(example.prompt)] + [int(example.target)]


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


def test_spans_cover_the_signals():
    for example in tasks.load("synthetic_arithmetic", "ood", 50):
        texts = [example.prompt[a:b] for a, b in example.signal_spans]
        assert texts == [f"S{s}" for s in signals(example)[:-1]]


@pytest.mark.parametrize("split", tasks.SPLITS)
def test_letters_write_the_same_sequences(split):
    def number(signal):
        return str("ABCDEFGHIJKLMNOPQRSTUVWXY".index(signal[1]))

    options = {"n": 300, "seed": 5, "noise_max": 4}
    numbers, letters = (tasks.load("synthetic_arithmetic", split, **options, answer=a) for a in ("number", "letter"))
    for plain, example in zip(numbers, letters, strict=True):
        assert re.sub(r"S( [A-Y])", lambda m: f"S{number(m[1])}", example.prompt) == plain.prompt
        assert number(example.target) == plain.target
        spans = [[e.prompt[a:b] for a, b in e.signal_spans] for e in (plain, example)]
        assert [f"S{number(text[1:])}" for text in spans[1]] == spans[0]


def test_another_form_of_the_answers_is_another_task():
    assert tasks.title("ecqa", {"answer": "letter", "rotations": 2}) == "ecqa:letter"
    assert tasks.title("synthetic_arithmetic", {"answer": "letter"}) == "synthetic_arithmetic:letter"
    for name, options in (("ecqa", {}), ("ecqa", {"answer": "text"}), ("clutrr", {}), ("ecqa", {"rotations": 1})):
        assert tasks.title(name, options) == tasks.title(name) == name


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
        tasks.load("synthetic_arithmetic", "id", 10**9, noise_max=1, holdout=0.05)
    available = int(re.search(r"has (\d+)", str(caught.value)).group(1))
    assert len(tasks.load("synthetic_arithmetic", "id", available, noise_max=1, holdout=0.05)) == available


@pytest.fixture
def own_task(tmp_path):
    def write(*rows):
        path = tmp_path / "own.jsonl"
        path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8")
        return str(path)

    return write


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
        ([GOOD, "{"], "no JSON in line 2 of .*own.jsonl"),
        ([GOOD, "", [1]], "Line 3 of .*own.jsonl"),
        ([GOOD | {"extra": 1}], "'extra'"),
        ([{"prompt": "a", "split": "id"}], "Line 1 of .*'target'"),
        ([GOOD | {"target": 4}], "line 1 of .*own.jsonl.*'target' .* 4"),
        ([GOOD | {"prompt": ""}], "'prompt'"),
        ([GOOD | {"split": "test"}], "'split' .*'test'"),
        *(
            ([GOOD | {"signal_spans": spans}], "signal_spans")
            for spans in ([[0, 3]], [[1, 1]], [[0, 1, 2]], [[0, True]])
        ),
        ([], "is empty"),
        ([GOOD, GOOD], "the id split of .*own.jsonl has 1 different"),
    ],
)
def test_a_bad_file_is_named_with_its_line(own_task, rows, words):
    path = own_task(*rows)
    with pytest.raises(InputError, match=words):
        tasks.load(path, "id", 2)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sums", {}, "'sums'"),
        ("clutrr", {"split": "test"}, "'test'"),
        ("ecqa", {"n": 0}, "at least 1"),
        ("ecqa", {"n": 2.5}, "integer"),
        ("synthetic_arithmetic", {"n": None}, "has no end"),
        ("synthetic_arithmetic", {"hold": 1}, "'hold'"),
        ("synthetic_arithmetic", {"holdout": 0.001}, "holds out 0 of 156 pairs"),
        ("synthetic_arithmetic", {"data_dir": "x"}, "no data folder"),
        ("no/such.jsonl", {}, "no/such.jsonl cannot be read"),
        ("no/such.jsonl", {"holdout": 0.1}, "'holdout'"),
        *((name, {"source": "web"}, "'web'") for name in NATURAL),
        *((name, {"source": "local"}, "needs the folder of the data") for name in NATURAL),
        ("clutrr", {"source": "hub", "data_dir": "here"}, "reads no folder"),
        ("clutrr", {"data_dir": "no/such"}, "no folder no/such/clutrr"),
        ("cnn_dailymail", {"data_dir": "no/such"}, "no folder no/such/cnn_dailymail"),
        ("clutrr", {"n": None}, "has no end"),
        ("clutrr", {"hops": [4]}, r"hops=\[4\]"),
        ("ecqa", {"n": 9999}, "has 210 different"),
        ("ecqa", {"n": 43, "rotations": 1}, "has 42 different"),
        ("ecqa", {"rotations": 2, "data_dir": "here"}, "rotations"),
    ],
)
def test_bad_requests(name, options, words):
    with pytest.raises(InputError, match=words):
        tasks.load(name, **{"split": "id", "n": 1} | options)


@pytest.mark.parametrize("name", NATURAL)
def test_a_hub_out_of_reach_is_one_sentence(monkeypatch, name):
    def load_dataset(*_, **__):
        raise ConnectionError("no route to the Hub.\nand a long trace")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"cannot be loaded from the Hub .*no route.*data_dir=FOLDER") as caught:
        tasks.load(name, "train", 1, source="hub")
    assert "long trace" not in str(caught.value)
