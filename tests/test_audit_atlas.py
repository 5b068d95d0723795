"""The atlas: lines averaged over seeds, places and falls, predictions beside what was measured."""

import pandas as pd
import pytest

from ridge_utils import results
from ridge_utils.audit import atlas

PLACES = results.sites(4)
#: Of the embedding, four blocks and the state after the final norm.
PEAK, FLAT = [0.0, 1.0, 4.0, 3.0, 2.0, 9.0], [0.0, 1.0, 2.0, 3.0, 5.0, 9.0]


def table(model="m", task="clutrr", step=0, seed=None, scale=1.0, paper=PEAK, spread=PEAK):
    row = {"model": model, "task": task, "source": "local", "split": "all", "step": step, "train_seed": seed}
    row |= {"sample_seed": None, "n": 8}
    values = {"predictive_information": paper, "null_information": FLAT, "plug_in": FLAT, "unbiased_information": FLAT}
    values |= {"predicted_entropy": spread}
    parts = [results.measurements([scale * v for v in line], PLACES, name, **row) for name, line in values.items()]
    parts.append(results.measurements([70.0] * 6, PLACES, "predictive_information", **row, variant="whole"))
    return pd.concat([*parts, parts[0].assign(split="id", value=50.0)])


def test_lines_are_means_over_training_seeds_of_the_first_table_of_a_case():
    seeds = pd.concat([table(step=5, seed=0), table(step=5, seed=1, scale=3.0)])
    stored = {
        "anatomy": {"reference/a/anatomy.csv": (seeds, {}), "anatomy.csv": (table(scale=100.0), {})},
        "audit": {"audit/b/audit.csv": (table(model="other"), {}), "audit/a/audit.csv": (table(scale=9.0), {})},
    }
    found = atlas.lines(stored)
    assert set(zip(found["model"], found["step"], strict=True)) == {("m", 5), ("other", 0)}
    ours = found[found["model"] == "m"]
    assert ours["paper"].tolist() == [2 * value for value in PEAK[:-1]]  # without the state after the norm
    assert ours["depth"].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_places_and_the_fall_of_the_spread():
    stored = {"anatomy": {"a": (table(), {}), "b": (table(model="rising", spread=FLAT), {})}}
    found = atlas.layers(atlas.lines(stored)).set_index("model")
    assert found["paper_layer"].tolist() == [2, 2] and found["spread_layer"].tolist() == [2, 4]
    assert found["spread_fall"].tolist() == [pytest.approx(0.5), 0.0] and set(found["blocks"]) == {4}


def test_predictions_are_right_within_a_block_and_open_where_nothing_is_measured():
    stored = {"anatomy": {"a": (table(), {}), "b": (table(task="ecqa"), {}), "c": (table(model="x"), {})}}
    row = {"source": "local", "options": "none", "blocks": 4}
    cases = [("m", "clutrr", 3, True), ("m", "ecqa", 4, False), ("x", "clutrr", 2, True), ("y", "clutrr", 2, True)]
    predicted = pd.DataFrame(
        [row | {"model": m, "task": t, "ridge_layer_to_last": at, "falls": falls} for m, t, at, falls in cases]
        + [row | {"model": "m", "task": "clutrr", "ridge_layer_to_last": 1, "falls": True, "options": "letter"}]
    )
    found = atlas.foretold(atlas.lines(stored), predicted)
    assert found["measured"].tolist()[:3] == [2, 2, 2] and pd.isna(found["measured"].iloc[3])
    assert found["place_right"].tolist()[:3] == [True, False, True]
    assert found["fall_right"].tolist()[:3] == [True, False, True]


def test_falls_have_a_row_per_checkpoint_and_a_column_per_statement():
    effects = {name: 0.1 * place for place, name in enumerate(atlas.STATEMENTS.values())}
    one = {
        "claim": "C1",
        "part": "last block",
        "model": "m",
        "task": "t",
        "source": "s",
        "verdict": "partly",
        "why": "",
    }
    rows = [
        one | {"when": when, "effect": effect, "estimate": v, "low": v - 1, "high": v + 1, "n": n, "seeds": 1}
        for when, n in (("untouched", 100), ("step 40, the last", 200))
        for effect, v in effects.items()
    ]
    rows += [rows[0] | {"part": "final norm", "estimate": 7.0}, rows[0] | {"claim": "C2", "estimate": 8.0}]
    found = atlas.falls(pd.DataFrame(rows))
    assert found["step"].tolist() == [0, 40] and found["n"].tolist() == [100, 200]
    for name, effect in atlas.STATEMENTS.items():
        assert found[name].tolist() == [effects[effect]] * 2
        assert (found[f"{name}_high"] - found[f"{name}_low"]).tolist() == [2.0, 2.0]
