"""Estimates by number of examples: by which method, from which draws."""

import numpy as np
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
    by_quadrature = quadrature.predictive_information(large.states[[0, 2, 4, 5]], large.targets, settings=SETTINGS)
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
    assert sample_size.agreement(table[table["variant"] == ""]).empty


@pytest.mark.parametrize(
    ("sizes", "every", "words"),
    [
        ([], 1, "sizes"),
        ([20, 10], 1, "increase"),
        ([10, 51], 1, "51"),
        ([1, 5], 1, "between 2"),
        ([10], 0, "every"),
    ],
)
def test_bad_sizes_are_refused(sizes, every, words):
    with pytest.raises(InputError, match=words):
        sample_size.check(sizes, 50, every)
