"""``ridge audit``: what it refuses before it measures, and one audit from the model to the verdicts and out again."""

import json
import os

import pytest

from ridge_utils import results
from ridge_utils.audit import verdicts
from ridge_utils.run import audit, cli, sweep

MODEL = "random:gpt2-3x16"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder to work in, and results that are nobody's."""
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_task(path, **counts):
    rows = [
        {"prompt": f"{split} {number}", "target": str(number % 2), "split": split}
        for split, count in counts.items()
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no/such/model"], "There is no model"),
        (["./nothing"], "There is no model"),
        ([MODEL, "--task", "no_task"], "Unknown task"),
        ([MODEL, "--n", "many"], "'n_examples' must be"),
        ([MODEL, "--n", "5"], "n_examples must be"),
        ([MODEL, "-p", "n_exmples=9"], "has no parameter 'n_exmples'"),
        ([MODEL, "-p", "save_table=a.csv"], "-o"),
        ([MODEL, "--task-options", "[1]"], "'task_options' must be"),
        ([MODEL, "--task", "half.jsonl"], "ood split of"),
        ([MODEL, "--task", "few.jsonl", "--n", "20"], "n_examples=20"),
        ([MODEL, "--remove"], "No audit of 'random:gpt2-3x16' is in results/audit"),
    ],
)
def test_what_is_refused_before_anything_is_measured(arguments, words, place, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "execute", None)  # calling it would raise
    write_task(place / "half.jsonl", id=9)
    write_task(place / "few.jsonl", id=9, ood=9)
    assert cli.main(["audit", *arguments]) == 2
    assert words in capsys.readouterr().err.partition("\n")[0]


def options(*arguments):
    return cli._parser().parse_args(["audit", MODEL, *arguments])


def test_a_task_with_few_examples_gives_all_that_it_has(place):
    write_task(place / "few.jsonl", id=12, ood=9)
    name, values = audit._with_examples(audit._parameters(options(), "few.jsonl"))
    assert (name, values["n_examples"]) == ("random-gpt2-3x16-few.jsonl", 9)


def test_a_data_folder_goes_to_the_tasks_that_read_one(place):
    both = options("--data-dir", str(place), "--task", "clutrr", "--task", "synthetic_arithmetic")
    given = [audit._parameters(both, task).get("data_dir") for task in both.task]
    assert given == [str(place), None]


def test_a_model_or_task_that_was_written_since_is_measured_anew(place):
    table = place / "audit.csv"
    model = place / "model"
    model.mkdir()
    for path in (table, model / "weights", place / "t.jsonl"):
        path.write_text("")
        os.utime(path, (1000, 1000))
    os.utime(model, (1000, 1000))
    values = {"model": f"{model}[:2]", "task": str(place / "t.jsonl")}
    assert not audit._has_changed(values, table)
    for changed in (model / "weights", place / "t.jsonl"):
        os.utime(changed, (2000, 2000))
        assert audit._has_changed(values, table)
        os.utime(changed, (1000, 1000))
    assert not audit._has_changed({"model": "gpt2", "task": "clutrr"}, table)


@pytest.mark.slow
def test_an_audit_is_measured_judged_added_found_done_and_removed(place, capsys):
    command = ["audit", MODEL, "--n", "20", "-p", "n_shuffles=2", "--add"]
    assert cli.main(command) == 0
    folder = place / "runs" / "audit" / "random-gpt2-3x16-synthetic_arithmetic"
    added = place / "results" / "audit" / folder.name
    said = capsys.readouterr().out
    assert str(folder / "audit.html") in said and "Not measured: C3, " in said
    table, origin = results.read(added / "audit.csv")
    assert origin["parameters"]["n_examples"] == 20 and set(table["step"]) == {0}
    assert (added / "audit.html").read_bytes() == (folder / "audit.html").read_bytes()
    measured = verdicts.judge(verdicts.stored()).query("verdict != 'not measured'")
    assert set(measured["model"]) == {MODEL} and {"C1", "C2", "C4", "C9"} <= set(measured["claim"]) <= {*verdicts.RULES}

    before = (folder / "audit.csv").stat().st_mtime_ns
    assert cli.main(command) == 0
    assert (folder / "audit.csv").stat().st_mtime_ns == before

    (added / "notes.txt").write_text("mine")
    assert cli.main(["audit", MODEL, "--remove", "--task", "clutrr"]) == 2
    assert f"there is {MODEL} on synthetic_arithmetic" in capsys.readouterr().err
    assert cli.main(["audit", MODEL, "--remove"]) == 0
    assert not any(verdicts.stored().values())
    assert [path.name for path in added.iterdir()] == ["notes.txt"], "what is not ours stays"
