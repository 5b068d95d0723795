"""The page of verdicts says what the judged frame says, and nothing else."""

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest

from ridge_utils import notebooks, results
from ridge_utils.audit import verdict_page, verdicts
from ridge_utils.cache import sha256
from tests.test_verdicts import ORIGIN, PROBE, UNSURE, effect, falls


@pytest.fixture
def judged():
    tables = {
        "estimator_audit": {
            "reference/planted/estimator_audit.csv": (
                pd.concat([*falls(), effect("ridge_fall", 0.1, UNSURE, step=5)]),
                ORIGIN,
            )
        },
        "decodability": {"reference/planted/decodability.csv": (pd.concat(PROBE), ORIGIN)},
    }
    return verdicts.judge(tables)


def test_the_text_of_a_claim_counts_its_states_and_leads_back_to_file_and_command(judged):
    text = verdict_page.claim_text(judged, "C1")
    assert "of 2 states, reproduced in 1, not reproduced in 1" in text
    assert "`results/reference/planted/estimator_audit.csv`" in text
    assert "`ridge run decodability --profile planted`" in text
    assert "Nothing that is stored" in verdict_page.claim_text(judged, "C9")


def test_tables_show_the_effect_with_its_interval(judged):
    html = verdict_page.claim_table(judged, "C1").to_html()
    assert "0.100 [0.090, 0.110] nats" in html
    summary = verdict_page.summary_table(judged).to_html()
    assert "1 reproduced, 1 not reproduced" in summary
    assert 'href="estimator_audit.html#fig-' in summary


def test_counts_agree_everywhere(judged):
    assert "C1: 1 reproduced, 1 not reproduced" in verdict_page.lines(judged)
    row = next(line for line in verdict_page.counts_table(judged).splitlines() if line.startswith("| C1"))
    assert row.endswith("| 1 | 0 | 1 | 0 |")
    assert "Of 1 pairs" in verdict_page.headline(judged)


def test_the_figure_has_a_cell_for_every_claim_model_and_task(judged):
    figure = verdict_page.summary_figure(judged)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == len(verdicts.RULES)
    assert texts[0] == "1 reproduced\n1 not repr."
    plt.close(figure)


@pytest.mark.parametrize("claim", verdicts.RULES)
def test_every_verdict_links_to_a_figure_that_exists(claim):
    page, name = verdict_page._FIGURES[claim]
    cells = nbformat.read(notebooks.NOTEBOOKS / f"{page}.ipynb", as_version=4).cells
    names = [cell.metadata.get("mystnb", {}).get("figure", {}).get("name") for cell in cells]
    assert name in names


def test_a_users_audit_is_found_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    table = pd.concat([*falls(), *PROBE], ignore_index=True)
    table["model"] = "some/model: v2"
    file = verdicts.audit_file(table)
    assert file == tmp_path / "audit" / "some-model-v2-made-up" / "audit.csv"
    results.write(table, file, ORIGIN)
    assert sha256(file) == verdicts.stored()["audit"]["audit/some-model-v2-made-up/audit.csv"][1]["sha256"]
    row = verdicts.judge(verdicts.stored()).query("claim == 'C1'").iloc[0]
    assert (row["model"], row["verdict"]) == ("some/model: v2", "reproduced")
