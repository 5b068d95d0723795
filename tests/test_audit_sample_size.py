"""Estimates by number of examples: by which method, from which draws, and what is said of them."""

import numpy as np
import pandas as pd
import pytest
import torch

from ridge_utils import information, statistics
from ridge_utils.audit import quadrature, sample_size
from ridge_utils.audit.quadrature import Settings
from ridge_utils.errors import InputError
from ridge_utils.representations import Representations

N, BLOCKS, D = 241, 4, 12
CONTEXT = {"model": "m", "task": "t", "source": "own", "split": "all", "step": 0, "train_seed": None}
SETTINGS = Settings(rank=20, probes=8)


def planted():
    """States that carry the target most at layer 2, and a last block without it."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(N) % 6
    embedding = torch.randn(6, D, generator=generator)
    noise = torch.randn(BLOCKS + 1, N, D, generator=generator)
    strength = torch.tensor([0.0, 1.0, 3.0, 1.0, 0.0])[:, None, None]
    hidden = noise + strength * embedding[ids] + 1
    return Representations(hidden, hidden[-1] * 2, embedding[ids], ids)


@pytest.fixture(scope="module")
def table():
    return sample_size.measure(
        planted(),
        CONTEXT,
        sizes=[30, 120, 200],
        sampling_seeds=[5, 6],
        every=2,
        exact_up_to=120,
        quadrature_from=100,
        settings=SETTINGS,
    )


def test_draws_and_methods_are_those_asked_for(table):
    drawn = table.groupby("n")["sample_seed"].unique().map(list).to_dict()
    assert drawn == {30: [5, 6], 120: [5, 6], 200: [5]}
    assert table["layer"].drop_duplicates().tolist() == [0, 2, 4]
    assert table.groupby(["quantity", "variant"])["n"].unique().map(list).to_dict() == {
        ("predictive_information", ""): [30, 120],
        ("null_information", ""): [30, 120],
        ("predictive_information", "quadrature"): [120, 200],
        ("null_information", "quadrature"): [200],
        ("quadrature_error", "quadrature"): [120, 200],
    }
    compared = table[(table["n"] == 120) & (table["quantity"] == "quadrature_error")]
    assert compared["sample_seed"].unique().tolist() == [5]


def test_values_are_those_of_the_estimators(table):
    pool = planted()
    chosen = pool.select(statistics.subsample(N, 120, 6))
    rows = table[(table["n"] == 120) & (table["sample_seed"] == 6) & (table["variant"] == "")]
    exact = rows.loc[rows["quantity"] == "predictive_information", "value"]
    states = chosen.states[[0, 2, 4, 5]]
    np.testing.assert_allclose(exact, information.predictive_information(states, chosen.targets), rtol=1e-12)
    null = rows.loc[rows["quantity"] == "null_information", "value"]
    np.testing.assert_allclose(null, information.permutation_null(states, chosen.targets, 1, 6)[0], rtol=1e-9)
    large = pool.select(statistics.subsample(N, 200, 5))
    by_quadrature = quadrature.predictive_information(
        large.states[[0, 2, 4, 5]], large.targets, method="lanczos", settings=SETTINGS
    )
    rows = table[table["n"] == 200]
    found = rows.loc[rows["quantity"] == "predictive_information", "value"]
    np.testing.assert_allclose(found, by_quadrature.value, atol=1e-5)
    np.testing.assert_allclose(
        rows.loc[rows["quantity"] == "quadrature_error", "value"], by_quadrature.error, atol=1e-5
    )


def test_the_null_vanishes_as_the_number_grows_and_the_information_stays(table):
    rows = sample_size.summary(table).set_index("n")
    assert rows["ridge_layer"].tolist() == [2, 2, 2]
    assert rows["null_at_ridge"].is_monotonic_decreasing
    assert rows.loc[200, "null_at_ridge"] < 0.5 * rows.loc[30, "null_at_ridge"]
    assert rows.loc[200, "fall"] > 0.5 * rows.loc[30, "fall"] > 0


def test_the_agreement_takes_the_sizes_that_have_both(table):
    rows = sample_size.agreement(table)
    assert rows.index.tolist() == [120]
    assert rows.loc[120, "states"] == 4
    wide = table[(table["n"] == 120) & (table["sample_seed"] == 5)].pivot_table(
        index=["layer", "site"], columns=["quantity", "variant"], values="value"
    )
    exact = wide["predictive_information", ""]
    off = (wide["predictive_information", "quadrature"] - exact).abs()
    assert rows.loc[120, "largest_difference"] == pytest.approx(off.max())
    assert rows.loc[120, "inside"] == (off <= wide["quadrature_error", "quadrature"] + 1e-9).sum()
    assert rows.loc[120, "largest_share"] == pytest.approx((off / exact).max())


def moved(table, by):
    """The quadrature's values moved."""
    rows = table.copy()
    chosen = (rows["quantity"] == "predictive_information") & (rows["variant"] == "quadrature")
    rows.loc[chosen, "value"] += by
    return rows


def test_a_quadrature_that_is_off_is_seen(table):
    assert sample_size.agreement(moved(table, 0.5)).loc[120, "inside"] == 0
    assert "0 of the 4 are within its own error" in sample_size.agreement_sentence(moved(table, 0.5))


def test_the_sentences_have_the_numbers_of_the_tables(table):
    rows, text = sample_size.summary(table), sample_size.sentence(table)
    for n in (30, 200):
        (row,) = rows[rows["n"] == n].to_dict("records")
        for name in ("at_ridge", "null_at_ridge", "fall", "null_fall"):
            assert f"{row[name]:.3f}".replace("-", "−") in text.replace("-", "−")
    assert "from N = 30 to N = 200" in text
    left = row["at_ridge"] - row["null_at_ridge"]
    assert f"At N = 200, {left:.4f} nats are left above the null at layer 2" in text
    assert f"{row['fall'] - row['null_fall']:.4f} of them are gone" in text
    assert "At N = 120 the quadrature was compared" in sample_size.agreement_sentence(table)
    without = table[table["variant"] == ""]
    assert sample_size.agreement(without).empty
    assert sample_size.agreement_sentence(without).startswith("No size has both")


def test_the_figures_show_every_size_and_run(table):
    trained = table.assign(step=10)
    tables = {"one": table, "other": pd.concat([table, trained])}
    assert len(sample_size.sizes_figure(tables).axes) == 9
    lines = sample_size.sizes_figure(tables).axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["N = 30", "N = 120", "N = 200"]
    assert len(sample_size.growth_figure(tables).axes) == 3
    assert [ax.get_title() for ax in sample_size.agreement_figure(tables).axes if ax.get_visible()] == [
        "one\nN = 120",
        "other\nN = 120",
    ]


@pytest.mark.parametrize(
    ("sizes", "every", "words"),
    [
        ([], 1, r"between 2 and the number of examples of both splits, 50, but are \[\]"),
        ([20, 10], 1, r"sizes must increase .* but are \[20, 10\]"),
        ([10, 51], 1, r"\[10, 51\]"),
        ([1, 5], 1, r"\[1, 5\]"),
        ([10], 0, "every must be at least 1, but is 0"),
    ],
)
def test_bad_sizes_are_one_clear_sentence(sizes, every, words):
    with pytest.raises(InputError, match=words) as caught:
        sample_size.check(sizes, 50, every)
    assert "\n" not in str(caught.value)
