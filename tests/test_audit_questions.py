"""The referees' questions are answered from the tables that are stored, reference runs first."""

import re
from pathlib import Path

import pandas as pd
import pytest

from ridge_utils import results
from ridge_utils.audit import questions, verdicts

PAGE = Path(__file__).parent.parent / "book" / "questions.md"


@pytest.fixture(scope="module")
def answers():
    tables = verdicts.stored()
    return questions.answers(verdicts.judge(tables), tables)


def test_every_question_but_that_on_captions_is_answered(answers):
    text = PAGE.read_text(encoding="utf-8")
    assert len(re.findall(r"^## ", text, re.MULTILINE)) == 12
    assert re.findall(r"{{ (\w+) }}", text) == list(answers) == [f"question_{n}" for n in range(1, 12)]
    for answer in answers.values():
        assert re.search(r"\d", answer)
        assert "nan" not in answer.lower()


def test_an_answer_repeats_the_number_that_the_table_holds(answers):
    [(table, _)] = [own for name, own in verdicts.stored()["early_exit"].items() if "smollm2-synthetic" in name]
    accuracy = table[
        (table["quantity"] == "early_exit_accuracy")
        & (table["variant"] == "")
        & (table["split"] == "ood")
        & (table["step"] == 0)
    ]
    assert f"({100 * accuracy['value'].max():.1f} %)" in answers["question_11"]


def test_verdicts_are_counted_by_model_and_task():
    judged = pd.DataFrame(
        [
            ("C1", "m", "a", "partly", "No."),
            ("C1", "m", "a", "reproduced", ""),
            ("C1", "m", "a", "partly", "No."),
            ("C1", "m", "b", verdicts.NOT_JUDGED, verdicts.NOT_MEASURED),
            ("C1", "n", "b", verdicts.NOT_JUDGED, "There is no ridge."),
            ("C2", "m", "a", "reproduced", ""),
        ],
        columns=["claim", "model", "task", "verdict", "why"],
    )
    assert questions.tally(judged, "C1") == (
        "Claim C1: m on a, of 3 states: reproduced in 1, partly in 2; n on b, of 1 state: not judged in 1 (There is no "
        "ridge)."
    )
    assert questions.tally(judged, "C3") == ""


def test_a_list_begins_on_a_line_of_its_own():
    runs = {"first": pd.DataFrame({"a": [1]}), "second": pd.DataFrame({"a": [2]})}
    assert questions.each(runs, lambda t: f"a is {t['a'][0]}.") == "**first.** a is 1.\n\n**second.** a is 2."
    assert questions.each(runs, lambda t: f"- {t['a'][0]}") == "**first.**\n\n- 1\n\n**second.**\n\n- 2"


def test_of_two_tables_on_one_model_and_task_the_first_answers():
    table = results.measurements(
        [1.0], [(0, "block")], "q", model="m", task="t", source="synthetic", step=0, train_seed=None, split="id",
        sample_seed=None, n=1,
    )  # fmt: skip
    tables = {"audit/m-t/audit.csv": (table, {}), "early_exit.csv": (table.assign(value=2.0), {})}
    [(title, first)] = questions._first(tables).items()
    assert title == "m, t, audit run"
    assert first["value"].item() == 1.0
