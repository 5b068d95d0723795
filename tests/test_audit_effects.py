"""Tables and sentences of effects, on planted effects."""

import math

import pandas as pd
import pytest

from ridge_utils import formatting, inference
from ridge_utils.inference import Effect

CONTEXT = {"model": "m", "task": "t", "source": "own", "sample_seed": None, "n": 9}


def rows(quantity, effect, split="id", step=0, train_seed=None):
    return inference.effect_rows(
        effect, (2, "block"), quantity, **CONTEXT, split=split, step=step, train_seed=train_seed
    )


@pytest.fixture
def tables():
    first = [
        rows("fall", Effect(0.3, 0.1, 0.5, 0.001, 0.8)),
        rows("fall", Effect(0.2, 0.1, 0.4, 0.04, 0.6), "ood", 7, 0),
        rows("fall", Effect(0.4, 0.0, 0.5, 0.01, 0.4), "ood", 7, 1),
        rows("shift", Effect(-0.00012, -0.2, 0.1, 0.5, math.nan)),
    ]
    second = [rows("shift", Effect(-0.5, -0.6, -0.4, 0.0001, -2.0), "all")]
    return {"one": pd.concat(first, ignore_index=True), "two": pd.concat(second, ignore_index=True)}


NAMES = {"shift": "the shift", "fall": "the fall"}


def test_effects_are_gathered_in_the_order_asked_for(tables):
    found = inference.gathered(tables, NAMES)
    assert list(zip(found["run"], found["effect"], found["estimate"], strict=True)) == [
        ("one", "the shift", -0.00012),
        ("one", "the fall", 0.3),
        ("one", "the fall", 0.2),
        ("one", "the fall", 0.4),
        ("two", "the shift", -0.5),
    ]
    assert found["quantity"].tolist() == ["shift", "fall", "fall", "fall", "shift"]
    assert inference.gathered(tables, {"other": "another"}).empty


def test_training_seeds_stand_together_by_the_protocol(tables):
    together = inference.across_seeds(inference.gathered(tables, NAMES))
    assert len(together) == 4
    (row,) = together[together["step"] == 7].to_dict("records")
    assert (row["estimate"], row["low"], row["high"]) == pytest.approx((0.3, 0.0, 0.5))
    assert (row["p"], row["effect_size"]) == pytest.approx((0.04, 0.5))
    assert together["p"].tolist() == pytest.approx([0.5, 0.001, 0.04, 0.0001])


def test_seeds_of_different_signs_show_nothing():
    table = pd.concat(
        [rows("fall", Effect(s * 0.2, -1, 1, 0.01, s), step=7, train_seed=s) for s in (1, -1)], ignore_index=True
    )
    (row,) = inference.across_seeds(inference.effects(table, "fall")).to_dict("records")
    assert (row["estimate"], row["p"]) == (0, 1)


def shown(styler):
    return styler.data.to_dict("records")


def test_the_table_corrects_its_p_values_and_says_so(tables):
    found = inference.across_seeds(inference.gathered(tables, NAMES))
    table = formatting.effect_table(found, {"run": "run", "split": "sample", "effect": "what"}, "Planted effects")
    assert shown(table) == [
        {"run": "one", "sample": "ID", "what": "the shift", "estimate": "+0.000", "interval": "-0.200 to 0.100",
         "p": "0.500", "effect size": "–"},
        {"run": "one", "sample": "ID", "what": "the fall", "estimate": "+0.300", "interval": "0.100 to 0.500",
         "p": "0.003", "effect size": "+0.80"},
        {"run": "one", "sample": "OOD", "what": "the fall", "estimate": "+0.300", "interval": "0.000 to 0.500",
         "p": "0.080", "effect size": "+0.50"},
        {"run": "two", "sample": "both", "what": "the shift", "estimate": "-0.500", "interval": "-0.600 to -0.400",
         "p": "< 0.001", "effect size": "-2.00"},
    ]  # fmt: skip
    assert table.caption == ("Planted effects; intervals cover 95 %, p is after Holm's correction over the 4 rows")
    assert "Planted effects" in table.to_html()


def test_columns_can_be_a_list_and_sizes_can_be_missing(tables):
    found = inference.effects(tables["one"], "shift")
    (row,) = shown(formatting.effect_table(found, ["split", "train_seed"], "c", digits=1))
    assert row == {"split": "ID", "train seed": "–", "estimate": "+0.0", "interval": "-0.2 to 0.1", "p": "0.500"}
    none = formatting.effect_table(inference.effects(tables["one"], "other"), ["split"], "c")
    assert shown(none) == []


def test_an_effect_in_a_sentence():
    effect = {"estimate": 0.1234, "low": -0.0001, "high": 0.25, "p": 0.0004, "effect_size": 0.614}
    assert formatting.effect_text(pd.Series(effect)) == "+0.123 (0.000 to 0.250; p < 0.001; effect size +0.61)"
    effect |= {"p": 0.04, "effect_size": math.nan}
    assert formatting.effect_text(pd.Series(effect), digits=2) == "+0.12 (0.00 to 0.25; p = 0.040)"


def test_sides_count_what_is_beyond_its_error_after_correction(tables):
    found = inference.across_seeds(inference.gathered(tables, NAMES))
    text = formatting.sides(found, {"shift": -1, "fall": 1})
    assert text == (
        "Of 4 effects, 2 are beyond their error on the side of the paper's claim, 0 on the other side, and 2 are not "
        "told from zero (p up to 0.05 after Holm's correction over all of them)."
    )
    assert "1 are beyond their error on the side of the paper's claim, 1 on" in formatting.sides(
        found, {"shift": 1, "fall": 1}
    )


@pytest.mark.parametrize(
    ("p", "text"), [(0.0, "< 0.001"), (0.00099, "< 0.001"), (0.001, "0.001"), (1, "1.000"), (math.nan, "–")]
)
def test_p_values_as_people_read_them(p, text):
    assert formatting.p_text(p) == text
