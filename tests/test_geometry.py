"""Geometry against brute force and scikit-learn, and what the transformations promise."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA

from ridge_utils.audit import geometry


def samples(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ALL = [
    geometry.mean_cosine,
    geometry.effective_rank,
    geometry.unit_length,
    geometry.centred,
    lambda x: geometry.without_largest_dimensions(x, 2),
    lambda x: geometry.without_largest_components(x, 2),
    lambda x: geometry.whitened(x, 3).abs(),
]


@pytest.mark.parametrize("function", ALL)
def test_every_layer_is_taken_by_itself(function):
    x = samples(3, 20, 6)
    torch.testing.assert_close(function(x), torch.stack([function(layer) for layer in x]))


def test_mean_cosine_is_that_over_all_pairs():
    x = samples(9, 5)
    assert geometry.mean_cosine(x).item() == pytest.approx(1 - pdist(x.numpy(), "cosine").mean())
    assert geometry.mean_cosine(torch.eye(4)).item() == pytest.approx(0)
    assert geometry.mean_cosine(torch.ones(4, 3) * torch.tensor([[1.0], [2], [3], [4]])).item() == pytest.approx(1)
    assert geometry.mean_cosine(torch.tensor([[1.0, 0], [-1, 0]])).item() == pytest.approx(-1)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_effective_rank_counts_equal_variances(rank):
    # Both signs of each axis: the mean is zero and every axis has the same variance.
    x = torch.cat([torch.eye(9)[:rank], -torch.eye(9)[:rank]]) + 5
    assert geometry.effective_rank(x).item() == pytest.approx(rank)
    assert geometry.effective_rank(3 * x).item() == pytest.approx(rank)


def test_effective_rank_is_the_exponential_of_the_entropy_of_the_variances():
    x = samples(30, 5) * torch.tensor([5.0, 2, 1, 0.5, 0.1])
    shares = np.linalg.eigvalsh(np.cov(x.numpy().T))
    shares = shares / shares.sum()
    assert geometry.effective_rank(x).item() == pytest.approx(np.exp(-np.sum(shares * np.log(shares))))


def test_a_zero_sample_stays_zero():
    x = torch.tensor([[3.0, 4], [0, 0]])
    assert geometry.unit_length(x).tolist() == [[0.6, 0.8], [0, 0]]


TRANSFORMATIONS = [
    geometry.centred,
    lambda x: geometry.without_largest_components(x, 1),
    geometry.whitened,
]


@pytest.mark.parametrize("function", TRANSFORMATIONS)
def test_samples_that_are_all_the_same_become_exactly_zero(function):
    same = (100 * samples(1, 50)).float().expand(12, 50)
    assert not function(same).any()
    assert geometry.effective_rank(same) == 0


def test_a_sample_at_the_mean_becomes_exactly_zero_and_a_small_one_does_not():
    x = torch.tensor([[0.1, 0.7], [0.3, 0.1], [0.2, 0.4], [0.2, 0.4 + 1e-6]], dtype=torch.float64)
    found = geometry.centred(x[:3])
    assert not found[2].any()
    assert found[:2].any(-1).all()
    assert geometry.centred(x[2:]).any(-1).all()


def test_the_largest_dimensions_are_those_of_the_largest_mean_square():
    x = samples(30, 5) * torch.tensor([1.0, 9, 2, 1, 1])
    x[:, 3] += 7  # far from the origin, though it varies little
    found = geometry.without_largest_dimensions(x, 2)
    assert not found[:, [1, 3]].any()
    assert torch.equal(found[:, [0, 2, 4]], x[:, [0, 2, 4]])
    assert torch.equal(geometry.without_largest_dimensions(x, 0), x)


@pytest.mark.parametrize("shape", [(40, 6), (10, 30)])
def test_components_are_those_of_scikit_learn(shape):
    x = samples(*shape) * torch.linspace(3, 0.5, shape[1]) + 2
    pca = PCA(2).fit(x.numpy())
    left = x.numpy() - pca.inverse_transform(pca.transform(x.numpy()))
    np.testing.assert_allclose(geometry.without_largest_components(x, 2).numpy(), left, atol=1e-9)
    whitened = PCA(2, whiten=True, svd_solver="full").fit_transform(x.numpy())
    np.testing.assert_allclose(geometry.whitened(x, 2).abs().numpy(), np.abs(whitened), atol=1e-9)


def test_whitened_scores_have_unit_covariance_and_forget_any_linear_map():
    x = samples(100, 8)
    found = geometry.whitened(x, 8)
    torch.testing.assert_close(found.T.cov(), torch.eye(8, dtype=torch.float64))
    mapped = geometry.whitened(x @ samples(8, 8, seed=1) + 3, 8)
    torch.testing.assert_close(torch.cdist(found, found), torch.cdist(mapped, mapped))


def test_components_without_variance_are_zero():
    x = torch.eye(3).repeat(20, 1)  # three clusters have two components
    found = geometry.whitened(x, 5)
    assert found.shape == (60, 5)
    torch.testing.assert_close(found.square().sum(0), torch.tensor([59.0, 59, 0, 0, 0], dtype=torch.float64))


def test_too_few_samples_keep_fewer_components():
    assert geometry.whitened(samples(100, 200)).shape == (100, 10)
    assert geometry.whitened(samples(20, 200)).shape == (20, 4)
    assert geometry.whitened(samples(3, 200)).shape == (3, 1)
