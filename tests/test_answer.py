"""The first page and the referees' questions: each fact that a sentence rests on, and the figure's tables."""

from pathlib import Path

import answer
import pytest
from PIL import Image


@pytest.mark.parametrize(("fact", "holds"), answer.facts().items())
def test_every_fact_that_a_sentence_rests_on_holds(fact, holds):
    assert holds, fact


@pytest.mark.parametrize("path", answer.IMAGES, ids=lambda path: path.stem)
def test_the_figure_was_drawn_from_the_stored_tables(path):
    assert Image.open(path).text["Source"] == answer.source()


def test_a_table_that_changes_changes_the_fact(monkeypatch):
    table = answer.reference(answer.ANATOMY).copy()
    peak = (table["layer"] == 24) & (table["quantity"] == "null_information") & (table["n"] == 200)
    table.loc[peak & (table["step"] == 0), "value"] /= 2
    monkeypatch.setattr(answer, "reference", lambda name: table)
    assert answer.null_share() < 0.5


def test_the_readme_gives_the_answer_of_the_first_page():
    root = Path(answer.__file__).parent.parent
    prose = (root / "book" / "intro.md").read_text(encoding="utf-8")
    text = prose.partition("## The answer\n")[2].strip()
    for name, number in answer.numbers().items():
        text = text.replace(f"{{{{ {name} }}}}", number)
    paragraph, points = text.split("\n\n")[:2]
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert paragraph in readme
    assert points in readme
