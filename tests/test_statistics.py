"""Bands, ridges and thirds on planted profiles, and the paper's own numbers."""

import math

import numpy as np
import pandas as pd
import pytest

from ridge_utils import paper, statistics
from tests.tables import profile


def test_subsamples_are_without_replacement_and_seeded():
    for n in (2, 7, 10):
        index = statistics.subsample(10, n, seed=3)
        assert len(set(index.tolist())) == n
        assert set(index.tolist()) <= set(range(10))
    assert statistics.subsample(100, 50, 1).tolist() == statistics.subsample(100, 50, 1).tolist()
    assert statistics.subsample(100, 50, 1).tolist() != statistics.subsample(100, 50, 2).tolist()


def test_band_is_two_sample_standard_deviations():
    values = [0.1, 0.4, 0.2, 0.7, 0.3]
    table = pd.concat([profile([0, v, 0], sample_seed=i) for i, v in enumerate(values)])
    row = statistics.band(table, ["site", "layer"]).set_index("site").loc["block"]
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["half_width"] == pytest.approx(2 * np.std(values, ddof=1))
    alone = statistics.band(profile([0, 0.5, 0]), ["layer", "site"])
    assert (alone["half_width"] == 0).all()


def test_ridge_summary_finds_a_planted_ridge_and_its_fall():
    seeds = range(5)
    ridged = [profile([0, 0.2, 0.5 + 0.01 * s, 0.3 + 0.01 * s, 0.1], sample_seed=s) for s in seeds]
    rising = [profile([0, 0.1, 0.2, 0.4, 0.9], sample_seed=s, step=7) for s in seeds]
    summary = statistics.ridge_summary(pd.concat(ridged + rising)).set_index("step")
    assert summary.loc[0, "ridge_layer"] == 2
    assert summary.loc[0, "to_last_block"] == pytest.approx(0.2)
    assert summary.loc[0, "to_last_block_half_width"] == pytest.approx(0, abs=1e-12)
    assert summary.loc[0, "to_final_norm"] == pytest.approx(0.42)
    assert summary.loc[0, "to_last_block_beyond_band"]
    assert summary.loc[7, "ridge_layer"] == 3, "the state after the final norm is never the ridge"
    assert summary.loc[7, "to_last_block"] == 0


def test_a_fall_within_the_band_is_no_ridge():
    falls = (0.3, -0.3, 0.2, -0.1)
    noisy = [profile([0, 0.5 + f, 0.5, 0.2], sample_seed=s) for s, f in enumerate(falls)]
    summary = statistics.ridge_summary(pd.concat(noisy))
    assert summary.loc[0, "ridge_layer"] == 1
    assert not summary.loc[0, "to_last_block_beyond_band"]
    assert not summary.loc[0, "has_ridge"]


@pytest.mark.parametrize(
    ("values", "has_ridge"),
    [
        ([0.1, 0.5, 0.3, 0.9], True),
        ([0.5, 0.4, 0.3, 0.0], False),  # largest at the embedding
        ([0.1, 0.3, 0.5, 0.0], False),  # largest at the last block
    ],
)
def test_a_ridge_lies_between_the_embedding_and_the_last_block(values, has_ridge):
    noise = np.random.default_rng(0).normal(0, 0.001, (5, len(values)))
    table = pd.concat([profile(values + noise[seed], sample_seed=seed) for seed in range(5)])
    assert statistics.ridge_summary(table)["has_ridge"].tolist() == [has_ridge]


@pytest.mark.parametrize("blocks", [3, 4, 5, 12, 32])
def test_a_block_is_in_the_third_that_holds_its_middle(blocks):
    for layer in range(1, blocks + 1):
        third = math.ceil(3 * (layer - 0.5) / blocks)
        assert statistics.third_of(layer, blocks) == ("first", "middle", "last")[third - 1]


def test_thirds_are_of_blocks_alone_and_their_band_is_over_seeds():
    table = pd.concat([profile([9, 1, 2, 3 + seed, 9], sample_seed=seed) for seed in (0, 1)])
    thirds = statistics.by_third(table, "predictive_information").set_index("third")
    assert thirds["mean"].to_dict() == {"first": 1, "middle": 2, "last": 3.5}
    assert thirds["half_width"].to_dict() == pytest.approx({"first": 0, "middle": 0, "last": math.sqrt(2)})


def test_depth_table_and_the_papers_rows_beside_it():
    table = pd.concat(
        [profile(list(range(26)), split="all", sample_seed=s) for s in (0, 1)]
        + [
            profile([x / 100] * 25, split=s, quantity="early_exit_accuracy", sample_seed=None)
            for s, x in (("all", 1), ("id", 2), ("ood", 3))
        ]
    )
    ours = statistics.depth_table(table, 0)
    assert ours["layer"].tolist() == list(range(25))
    assert ours["predictive_information"].tolist() == list(range(25))
    assert ours[["accuracy_all", "accuracy_id", "accuracy_ood"]].iloc[0].tolist() == [0.01, 0.02, 0.03]
    theirs = paper.table_1().assign(depth=lambda t: t["layer"] / paper.TABLE_1_BLOCKS)
    beside = statistics.beside(ours, theirs).set_index("layer")
    assert len(beside) == 25
    assert beside.loc[20, "paper_layer"] == 10
    assert beside.loc[20, "paper_predictive_information"] == 0.2721
    assert beside.loc[24, "paper_accuracy_id"] == 0.9317
    assert beside["paper_layer"].notna().sum() == 8


def test_the_papers_table_is_the_papers():
    table = paper.table_1().set_index("layer")
    information = {1: 0.0002, 6: 0.0185, 7: 0.0416, 8: 0.1883, 9: 0.2301, 10: 0.2721, 11: 0.2475, 12: 0.0188}
    assert table["predictive_information"].to_dict() == information
    # Where all three are known, the accuracy over all is the mean of ID and OOD, half of the examples each.
    known = table.dropna()
    means = (known["accuracy_id"] + known["accuracy_ood"]) / 2
    assert (known["accuracy_all"] - means).abs().max() < 1e-4
