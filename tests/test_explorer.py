"""The explorer's data: the stored numbers, each with what made it."""

from pathlib import Path

import explorer
import pytest

from ridge_utils import results


@pytest.fixture(scope="module")
def of_anatomy():
    table = results.read(results.FOLDER / "anatomy.csv")[0]
    return table, {(c["q"], c["split"], c["n"]): c for c in explorer.curves(table)}


@pytest.mark.parametrize(("variant", "n"), [("", 200), ("whole", 500)])
def test_a_curve_holds_the_stored_values(of_anatomy, variant, n):
    table, curves = of_anatomy
    curve = curves["predictive_information", "all", n]
    rows = table[(table["quantity"] == "predictive_information") & (table["variant"] == variant) & (table["n"] == n)]
    assert curve["x"] == list(range(32)), "the embedding, 30 blocks, and the state after the final norm"
    assert curve["y"][-1] == pytest.approx(rows.loc[rows["site"] == "final_norm", "value"].item(), rel=1e-4)
    assert curve["y"][:-1] == pytest.approx(
        rows[rows["site"] != "final_norm"].sort_values("layer")["value"].tolist(), rel=1e-4, abs=1e-12
    )


def test_an_interval_of_the_table_is_that_of_the_curve(of_anatomy):
    table, curves = of_anatomy
    curve = curves["unbiased_information", "all", 500]
    high = table[(table["quantity"] == "unbiased_information_high") & (table["layer"] == 20)]["value"].item()
    assert curve["interval"] == "95 %"
    assert curve["high"][20] == pytest.approx(high, rel=1e-4)
    assert "high" not in curves["early_exit_accuracy", "all", 500], "one value has no interval"


@pytest.mark.slow
def test_every_profile_can_be_explored_and_its_command_names_it():
    profiles = {path.parent.name for path in (results.FOLDER / "reference").glob("*/anatomy.csv")}
    cases = explorer.cases()
    assert profiles == {Path(run["file"]).parent.name for case in cases for run in case["runs"]} - {"results"}
    assert len({(case["model"], case["task"], case["source"]) for case in cases}) == len(cases)
    for case in cases:
        for curve in case["curves"]:
            assert len(curve["x"]) == len(curve["y"])
            assert case["runs"][curve["run"]]["command"].startswith("ridge run ")
