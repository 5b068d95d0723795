"""Effects against enumeration, closed forms, scipy's tests and simulations whose truth is known."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from ridge_utils import formatting, inference, results
from ridge_utils.errors import InputError
from ridge_utils.inference import Effect

CONTEXT = {
    "model": "m", "task": "t", "source": "own", "split": "id", "step": 0, "train_seed": None, "sample_seed": None,
    "n": 9,
}  # fmt: skip


def rng(seed=0):
    return np.random.default_rng(seed)


def pairs(seed, count, shift):
    """Two values of each example, the second higher by so many standard deviations."""
    first, second = rng(seed).normal(size=(2, count))
    return first, second + shift


# Paired.


def all_flips(change):
    """Two-sided p-value of the mean under every assignment of signs."""
    observed = sum(change)
    sums = [sum(s * c for s, c in zip(signs, change, strict=True)) for signs in itertools.product((1, -1), repeat=9)]
    above = sum(total >= observed for total in sums) / len(sums)
    below = sum(total <= observed for total in sums) / len(sums)
    return min(1.0, 2 * min(above, below))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(-4, 4), min_size=9, max_size=9))
@example([-1, 2, 3, -1, -2, 2, -4, 1, 0])  # their sum is 0 but for rounding
def test_few_pairs_are_tested_by_every_assignment_of_signs(change):
    """Small integers have ties, which a comparison of floats could miss."""
    first = [0.1 * i for i in range(9)]
    found = inference.paired_effect(first, [a + c / 8 for a, c in zip(first, change, strict=True)])
    assert found.p == pytest.approx(all_flips(change))
    assert found.estimate == pytest.approx(sum(change) / 72)


@pytest.mark.parametrize("count", [13, 40])
def test_signs_agree_with_scipys_permutations(count):
    """Up to 13 pairs every assignment, from 14 on a draw of them; scipy draws others."""
    first, second = pairs(8, count, 0.5)
    expected = stats.permutation_test((second - first,), np.mean, permutation_type="samples", vectorized=True, rng=0)
    found = inference.paired_effect(first, second)
    assert found.p == pytest.approx(expected.pvalue, abs=1e-9 if count == 13 else 0.015)


def test_a_large_sample_is_resampled_in_parts(monkeypatch):
    first, second = pairs(9, 30, 0.3)
    whole = inference.paired_effect(first, second)
    monkeypatch.setattr(inference, "_AT_ONCE", 3000)
    parts = inference.paired_effect(first, second)
    assert parts.p == pytest.approx(whole.p, abs=0.01)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.02)


def test_many_pairs_agree_with_students_test():
    first, second = pairs(1, 150, 0.2)
    found, expected = inference.paired_effect(first, second), stats.ttest_rel(second, first)
    assert found.p == pytest.approx(expected.pvalue, abs=0.015)
    assert found.size == pytest.approx(expected.statistic / math.sqrt(150))
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.02)


def test_a_p_value_is_never_below_what_the_resamples_can_give():
    change = rng(0).normal(5, 0.1, 60)
    least = 1 / (inference.RESAMPLES + 1)
    assert inference.paired_effect(np.zeros(60), change).p == pytest.approx(least)
    assert inference.paired_effect(np.zeros(60), np.ones(60)).p == pytest.approx(least)


def test_the_bootstrap_of_a_share_is_binomial():
    right = np.arange(80) < 28
    found = inference.paired_effect(np.zeros(80), right)
    low, high = stats.binom(80, 28 / 80).ppf([0.025, 0.975]) / 80
    assert (found.low, found.high) == pytest.approx((low, high), abs=1 / 80 + 1e-9)
    assert found.estimate == pytest.approx(0.35)


def test_the_seed_decides_the_resampling_and_nothing_else():
    first, second = rng(3).normal(size=(2, 50))
    one, again, other = (inference.paired_effect(first, second, seed) for seed in (0, 0, 1))
    assert one == again
    assert one != other
    assert (one.estimate, one.size) == (other.estimate, other.size)


@pytest.mark.parametrize("function", [inference.paired_effect, inference.repeat_effect])
def test_equal_differences_are_a_point_whatever_their_rounding(function):
    first = np.array([0.1, 0.2, 0.3, 0.7, 1.1])
    second = first + 0.1
    assert np.std(second - first) > 0, "these differ in their last bit"
    found = function(first, second)
    assert found.low == found.high == found.estimate == pytest.approx(0.1)
    assert math.isnan(found.size)
    none = function(first, (first * 3) / 3)
    assert (none.estimate, none.low, none.high, none.p, none.size) == (0, 0, 0, 1, 0)


# Repeats.


def test_repeats_have_students_interval():
    first, second = pairs(4, 5, 0.8)
    found, expected = inference.repeat_effect(first, second), stats.ttest_rel(second, first)
    interval = expected.confidence_interval(inference.CONFIDENCE)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.size == pytest.approx(expected.statistic / math.sqrt(5))
    assert found.estimate == pytest.approx((second - first).mean())


# Halves and subsamples.


def test_halves_give_the_standard_error_of_the_mean():
    values = rng(7).normal(3, 2, 200)
    halves = [rng(seed).permutation(values)[:100].mean() for seed in range(2000)]
    found = inference.half_sample_effect(halves)
    error = values.std(ddof=1) / math.sqrt(200)
    assert found.estimate == pytest.approx(values.mean(), abs=0.02)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert math.isnan(found.size)


def share_that_cover(draw, truth, estimate, times=250):
    """Share of intervals that hold the truth, and of p-values below 0.05 (of an effect that is 0)."""
    found = [estimate(draw(seed)) for seed in range(times)]
    covered = np.mean([effect.low <= truth <= effect.high for effect in found])
    assert np.mean([effect.p < 0.05 for effect in found]) == pytest.approx(1 - covered)
    return covered


def test_intervals_from_halves_cover_what_they_should():
    def estimate(pool):
        some = rng(len(pool))
        return inference.half_sample_effect([some.permutation(pool)[: len(pool) // 2].mean() for _ in range(100)])

    covered = share_that_cover(lambda seed: rng(seed).normal(size=60), 0.0, estimate)
    # The standard error of a share of 0.95 over 250 pools is 0.014.
    assert 0.9 < covered < 0.99


def test_intervals_from_subsamples_cover_at_least_what_they_should():
    def estimate(pool, fraction=0.8):
        some = rng(1)
        return inference.subsample_effect([some.permutation(pool)[:80].mean() for _ in range(5)], fraction)

    def draw(seed):
        return rng(seed).normal(size=100)

    assert 0.94 < share_that_cover(draw, 0.0, estimate) < 1
    # As if the subsamples shared nothing.
    assert share_that_cover(draw, 0.0, lambda pool: estimate(pool, 1e-9)) < 0.8


def test_a_subsample_effect_is_students_with_the_share_taken_out():
    values, fraction = [0.1, 0.3, 0.25, 0.2, 0.4], 0.64
    found = inference.subsample_effect(values, fraction)
    error = np.std(values, ddof=1) / 0.6
    assert (found.low, found.high) == pytest.approx(stats.t(4, 0.25, error).interval(0.95))
    assert found.p == pytest.approx(2 * stats.t(4).sf(0.25 / error))
    assert math.isnan(found.size)


@pytest.mark.parametrize(("value", "p"), [(0.1, 0.0), (0.0, 1.0), (-3.0, 0.0)])
def test_estimates_that_all_agree_are_a_point(value, p):
    for found in (inference.half_sample_effect([value] * 20), inference.subsample_effect([value] * 5, 0.5)):
        assert (found.estimate, found.low, found.high, found.p) == (value, value, value, p)


# Holm.


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.01, 0.02, 0.05]), max_size=6))
def test_holm_is_the_closure_of_bonferroni(p):
    """A hypothesis falls if every intersection that it is part of falls to Bonferroni's test."""
    closed = [
        max(
            min(1.0, len(part) * min(p[j] for j in part))
            for size in range(1, len(p) + 1)
            for part in itertools.combinations(range(len(p)), size)
            if i in part
        )
        for i in range(len(p))
    ]
    assert inference.holm(p) == pytest.approx(closed)


def test_holm_leaves_out_what_was_not_tested():
    assert inference.holm([0.03, math.nan, 0.01]) == pytest.approx([0.03, math.nan, 0.02], nan_ok=True)
    assert inference.holm([]) == []


# What is refused.


def test_few_halves_are_refused():
    with pytest.raises(InputError, match="19"):
        inference.half_sample_effect([0.1] * 19)


# Tables.


def effect(estimate, size=0.4):
    return inference.Effect(estimate, estimate - 0.1, estimate + 0.1, 0.03, size)


def test_an_effect_is_five_rows_or_four():
    rows = inference.effect_rows(effect(0.5), (3, "block"), "gain", **CONTEXT)
    names = ["gain", "gain_low", "gain_high", "gain_p", "gain_effect_size"]
    assert rows["quantity"].tolist() == names
    assert rows["value"].tolist() == pytest.approx([0.5, 0.4, 0.6, 0.03, 0.4])
    assert (set(rows["layer"]), set(rows["site"]), set(rows["variant"])) == ({3}, {"block"}, {""})
    without = inference.effect_rows(effect(0.5, math.nan), (3, "block"), "gain", **CONTEXT)
    assert without["quantity"].tolist() == names[:-1]


@pytest.fixture
def planted():
    """Effects of one name by what tells them apart, among other quantities."""
    where = {
        (split, step, seed, variant, layer): 0.1 * place
        for place, (split, (step, seed), variant, layer) in enumerate(
            itertools.product(("id", "ood"), ((0, None), (5, 0), (5, 1)), ("", "centred"), (1, 2))
        )
    }
    tables = [
        inference.effect_rows(
            effect(estimate, math.nan if layer == 2 else estimate),
            (layer, "block"),
            "gain",
            **CONTEXT | {"split": split, "step": step, "train_seed": seed, "variant": variant},
        )
        for (split, step, seed, variant, layer), estimate in where.items()
    ]
    other = inference.effect_rows(effect(9.0), (1, "block"), "gain_shift", **CONTEXT)
    return where, pd.concat([other, *tables], ignore_index=True).sample(frac=1, random_state=0)


def test_effects_come_back_from_a_table_and_from_its_file(planted, tmp_path):
    where, table = planted
    results.write(table, tmp_path / "a.csv", {})
    for stored in (table, results.read(tmp_path / "a.csv")[0]):
        found = inference.effects(stored, "gain")
        assert len(found) == len(where)
        for row in found.itertuples():
            seed = None if pd.isna(row.train_seed) else row.train_seed
            estimate = where[row.split, row.step, seed, row.variant, row.layer]
            assert (row.estimate, row.low, row.high, row.p) == pytest.approx(
                (estimate, estimate - 0.1, estimate + 0.1, 0.03)
            )
            assert row.effect_size == pytest.approx(math.nan if row.layer == 2 else estimate, nan_ok=True)
            assert (row.n, row.site) == (9, "block")
            assert pd.isna(row.sample_seed)
    assert inference.effects(table, "gain_shift")["estimate"].tolist() == [9.0]


def test_a_table_without_an_effect_has_no_rows_of_it(planted):
    none = inference.effects(planted[1], "fall")
    assert none.empty
    assert list(none.columns) == list(inference.effects(planted[1], "gain").columns)


# Tables of effects.

SEEDED = {"model": "m", "task": "t", "source": "own", "sample_seed": None, "n": 9}


def rows(quantity, effect, split="id", step=0, train_seed=None):
    return inference.effect_rows(
        effect, (2, "block"), quantity, **SEEDED, split=split, step=step, train_seed=train_seed
    )


@pytest.fixture
def by_run():
    first = [
        rows("fall", Effect(0.3, 0.1, 0.5, 0.001, 0.8)),
        rows("fall", Effect(0.2, 0.1, 0.4, 0.04, 0.6), "ood", 7, 0),
        rows("fall", Effect(0.4, 0.0, 0.5, 0.01, 0.4), "ood", 7, 1),
        rows("shift", Effect(-0.00012, -0.2, 0.1, 0.5, math.nan)),
    ]
    second = [rows("shift", Effect(-0.5, -0.6, -0.4, 0.0001, -2.0), "all")]
    return {"one": pd.concat(first, ignore_index=True), "two": pd.concat(second, ignore_index=True)}


NAMES = {"shift": "the shift", "fall": "the fall"}


def test_effects_are_gathered_in_the_order_asked_for(by_run):
    found = inference.gathered(by_run, NAMES)
    assert list(zip(found["run"], found["effect"], found["estimate"], strict=True)) == [
        ("one", "the shift", -0.00012),
        ("one", "the fall", 0.3),
        ("one", "the fall", 0.2),
        ("one", "the fall", 0.4),
        ("two", "the shift", -0.5),
    ]
    assert found["quantity"].tolist() == ["shift", "fall", "fall", "fall", "shift"]
    assert inference.gathered(by_run, {"other": "another"}).empty


def test_training_seeds_stand_together(by_run):
    together = inference.across_seeds(inference.gathered(by_run, NAMES))
    trained = together["step"] == 7
    (row,) = together[trained].to_dict("records")
    assert (row["estimate"], row["effect_size"]) == pytest.approx((0.3, 0.5))
    alone = together.loc[~trained, ["low", "high", "p"]].to_numpy().tolist()
    assert alone == pytest.approx(np.array([[-0.2, 0.1, 0.5], [0.1, 0.5, 0.001], [-0.6, -0.4, 0.0001]]))


def test_seeds_without_an_error_of_their_own_are_students_test():
    values = [0.2, 0.5, 0.3, 0.7]
    found = inference.together([Effect(value, value, value, 0.5, math.nan) for value in values], 0.99)
    expected = stats.ttest_1samp(values, 0)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.99)))
    assert found.p == pytest.approx(expected.pvalue)


def test_seeds_that_agree_keep_the_error_of_their_examples():
    own = Effect(0.2, 0.1, 0.3, 0.01, 1.0)
    found = inference.together([own] * 5)
    assert (found.estimate, found.low, found.high) == pytest.approx((0.2, 0.1, 0.3))
    assert math.isnan(inference.together([own, Effect(0.2, 0.1, 0.3, math.nan, 1.0)]).p)


def test_one_seed_speaks_for_itself_at_any_confidence():
    found = inference.together([Effect(0.0, -1.96, 3.92, 0.5, math.nan)], 0.99)
    assert (found.low, found.high) == pytest.approx((-2.576, 2 * 2.576), abs=2e-3)


@pytest.mark.parametrize("between", [0.0, 0.5, 3.0])
def test_intervals_of_seeds_on_the_same_examples_cover_the_truth(between):
    draws, seeds = 1000, 3
    estimates = rng(1).normal(size=(draws, 1)) + between * rng(2).normal(size=(draws, seeds))
    reach = stats.norm.ppf(0.975)
    covered = 0
    for row in estimates:
        found = inference.together([Effect(value, value - reach, value + reach, 0.5, math.nan) for value in row])
        covered += found.low <= 0 <= found.high
    assert 0.92 < covered / draws < 0.98


def test_a_table_of_effects_shows_p_values_after_holms_correction(by_run):
    found = inference.gathered(by_run, NAMES)
    shown = formatting.effect_table(found, {"run": "run", "effect": "what"}, "Planted effects").data
    assert shown["p"].tolist() == ["0.500", "0.004", "0.080", "0.030", "< 0.001"]
