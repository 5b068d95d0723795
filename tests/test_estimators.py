"""Estimators against closed forms, other implementations, definitions written out, and distributions that are known."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate
from sklearn.feature_selection import mutual_info_classif

from ridge_utils.audit import estimators
from ridge_utils.errors import InputError


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def test_info_nce_is_a_lower_bound_that_comes_near():
    known = estimators.gaussian(400, 2, 1.0)
    bound = estimators.info_nce(known.x, known.y, steps=100).mean().item()
    assert 0.6 < bound < 1.1


@pytest.mark.slow
def test_info_nce_finds_nothing_where_there_is_nothing_and_never_more_than_log_k():
    assert abs(estimators.info_nce(normal(200, 5), normal(200, 3, seed=1), steps=50).mean().item()) < 0.05
    x = normal(100, 4)
    terms = estimators.info_nce(x, x, steps=50)
    assert 1.0 < terms.mean() <= math.log(20)
    assert terms.max() <= math.log(20) + 1e-6, "a fifth of 100 examples is held out at a time"


@pytest.mark.slow
def test_info_nce_trains_layers_side_by_side():
    x, y = torch.stack([normal(60, 4), normal(60, 4, seed=1)]), normal(60, 4)
    both = estimators.info_nce(x, y, steps=40)
    assert both.shape == (2, 60)
    assert both[0].mean() > 0.3 > both[1].mean()
    for layer in (0, 1):
        assert torch.allclose(both[layer], estimators.info_nce(x[layer], y, steps=40), atol=1e-5)
    assert not torch.equal(both, estimators.info_nce(x, y, seed=1, steps=40))


def test_examples_of_a_group_are_held_out_together():
    groups = torch.arange(40) // 4
    seen = []
    for train, test in estimators.splits(40, 0, groups):
        assert not set(groups[train].tolist()) & set(groups[test].tolist())
        seen += test.tolist()
    assert sorted(seen) == list(range(40))


def test_what_tells_groups_apart_is_of_no_use_for_groups_that_were_never_seen():
    groups = torch.arange(120) // 4
    x, y = normal(30, 6)[groups], normal(30, 6, seed=1)[groups]
    assert estimators.info_nce(x, y, steps=50).mean() > 1
    assert abs(estimators.info_nce(x, y, groups=groups, steps=50).mean()) < 0.2


# Nearest neighbours.


def test_ksg_equals_its_definition_written_out():
    x, y, k, n = normal(30, 2), normal(30, 3, seed=1), 3, 30
    harmonic = [0.0, *np.cumsum(1 / np.arange(1, n + 1))]

    def digamma(m):
        return harmonic[m - 1] - np.euler_gamma

    expected = []
    for i in range(n):
        dx = [math.dist(x[i], x[j]) for j in range(n) if j != i]
        dy = [math.dist(y[i], y[j]) for j in range(n) if j != i]
        reach = sorted(map(max, dx, dy))[k - 1]
        nx, ny = sum(d < reach for d in dx), sum(d < reach for d in dy)
        expected.append(digamma(k) + digamma(n) - digamma(nx + 1) - digamma(ny + 1))
    assert estimators.ksg(x, y).numpy() == pytest.approx(np.array(expected), abs=1e-9)


@pytest.mark.parametrize("truth", [0.0, 1.0, 2.0])
def test_ksg_finds_the_information_of_a_gaussian(truth):
    known = estimators.gaussian(800, 1, truth)
    assert estimators.ksg(known.x, known.y).mean().item() == pytest.approx(truth, abs=0.12)


def test_ross_equals_scikit_learn_in_one_dimension():
    known = estimators.clusters(200, 3, 3, 1.5)
    x = known.x[:, :1]
    (expected,) = mutual_info_classif(x.numpy(), known.labels.numpy(), discrete_features=False, random_state=0)
    assert estimators.ksg_discrete(x, known.labels).mean().item() == pytest.approx(expected, abs=1e-6)


def test_ross_works_where_scikit_learn_cannot_in_several_dimensions():
    known = estimators.clusters(500, 4, 4, 3.0)
    assert estimators.ksg_discrete(known.x, known.labels).mean().item() == pytest.approx(known.information, abs=0.15)


def test_copies_have_no_infinite_terms_and_what_never_varies_tells_nothing():
    same, labels = torch.zeros(20, 2), torch.arange(20) % 2
    twice = normal(10, 2).repeat(2, 1)
    assert estimators.ksg(twice, twice).isfinite().all()
    assert estimators.ksg_discrete(twice, labels).isfinite().all()
    assert not estimators.ksg(same, twice).any()
    assert not estimators.ksg(twice, same).any()
    assert not estimators.ksg_discrete(same, labels).any()


# Distance correlation and alignment.


def distance_correlation(x, y):
    return estimators.bias_corrected_correlation(torch.cdist(x, x), torch.cdist(y, y))


def linear_alignment(x, y):
    return estimators.bias_corrected_correlation(x @ x.mT, y @ y.mT)


def test_distance_correlation_equals_its_definition_written_out():
    x, y = normal(12, 3), normal(12, 2, seed=1)

    def centred(samples):
        n = len(samples)
        d = np.array([[math.dist(a, b) for b in samples] for a in samples])
        out = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                if i != j:
                    out[i, j] = d[i, j] - d[i].sum() / (n - 2) - d[:, j].sum() / (n - 2) + d.sum() / ((n - 1) * (n - 2))
        return out

    a, b = centred(x), centred(y)
    expected = (a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum())
    assert distance_correlation(x, y).item() == pytest.approx(expected, abs=1e-12)


def test_alignment_equals_the_unbiased_criterion_of_song():
    x, y = normal(15, 4), normal(15, 3, seed=1)

    def criterion(k, m):
        n = len(k)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        one = np.ones(n)
        return (
            np.trace(k @ m)
            + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ k @ m @ one)
        ) / (n * (n - 3))

    k, m = (x @ x.mT).numpy(), (y @ y.mT).numpy()
    expected = criterion(k, m) / math.sqrt(criterion(k, k) * criterion(m, m))
    assert linear_alignment(x, y).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("measure", [distance_correlation, linear_alignment])
def test_correlations_are_one_for_a_turned_copy_zero_without_dependence_and_symmetric(measure):
    x = normal(40, 5)
    turn = torch.linalg.qr(normal(5, 5, seed=1))[0]
    assert measure(x, 3 * x @ turn + 7).item() == pytest.approx(1, abs=1e-9)
    y = normal(40, 2, seed=2)
    assert measure(x, y).item() == pytest.approx(measure(y, x).item(), abs=1e-12)
    # Many dimensions and few samples: the plain estimates would lie far above 0.
    nothing = [measure(normal(20, 200, seed=s), normal(20, 200, seed=-1 - s + 1000)).item() for s in range(60)]
    assert abs(np.mean(nothing)) < 3 * np.std(nothing) / math.sqrt(60)
    assert measure(torch.full((10, 3), 0.3), y[:10]).item() == 0


# The reduction.


def test_components_keep_the_largest_directions_and_lose_nothing_where_all_are_kept():
    signal = normal(50, 2)
    wide = torch.cat([signal, signal, signal, 0.01 * normal(50, 1, seed=1)], 1) * torch.tensor([1, 5, 1, 1, 9, 1, 1])
    found = estimators.principal_components(wide, 2)
    assert found.shape == (50, 2)
    assert found.square().mean().item() == pytest.approx(1)
    together = torch.cat([found, torch.ones(50, 1)], 1)
    left = signal - together @ torch.linalg.lstsq(together, signal).solution
    assert left.square().mean() < 0.05
    x = normal(30, 4)
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    all_of_them = estimators.principal_components(x, 9)
    ratio = torch.cdist(all_of_them, all_of_them) / torch.cdist(standard, standard)
    assert torch.allclose(ratio[~torch.eye(30, dtype=torch.bool)], ratio[0, 1])


def test_equal_samples_have_no_components():
    assert not estimators.principal_components(torch.full((10, 4), 0.3), 3).any()


# The distributions.


def test_the_gaussian_has_the_correlation_of_its_information():
    known = estimators.gaussian(20_000, 2, 0.7)
    correlation = torch.corrcoef(torch.stack([known.x[:, 0], known.y[:, 0]]))[0, 1].item()
    assert -math.log(1 - correlation**2) == pytest.approx(0.7, abs=0.03)
    assert known.information == 0.7


@pytest.mark.parametrize("error", [0.0, 0.3, 0.75])
def test_the_channel_has_the_information_of_its_table(error):
    known = estimators.channel(200_000, 4, error)
    joint = (known.x.T @ known.y / len(known.x)).numpy()
    positive = joint > 0
    ratio = joint[positive] / np.outer(joint.sum(1), joint.sum(0))[positive]
    assert known.information == pytest.approx((joint[positive] * np.log(ratio)).sum(), abs=0.006)
    assert torch.equal(known.y.argmax(1), known.labels)


def test_two_clusters_have_the_information_of_the_integral():
    apart = 1.3 * math.sqrt(2)  # between the centres, in the one direction that matters

    def density(t):
        return (math.exp(-((t - apart / 2) ** 2) / 2) + math.exp(-((t + apart / 2) ** 2) / 2)) / math.sqrt(8 * math.pi)

    entropy, _ = integrate.quad(lambda t: -density(t) * math.log(density(t)), -12, 12)
    truth = entropy - 0.5 * math.log(2 * math.pi * math.e)
    known = estimators.clusters(3000, 2, 5, 1.3)
    assert known.information == pytest.approx(truth, abs=0.01)
    centres = torch.stack([known.x[known.labels == c].mean(0) for c in (0, 1)])
    assert centres.numpy() == pytest.approx(1.3 * np.eye(2, 5), abs=0.1)


# What is refused.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimators.ksg(normal(3, 2), normal(3, 2)), "More than 3"),
        (lambda: estimators.ksg_discrete(normal(3, 2), torch.tensor([4, 4, 7])), "7"),
        (lambda: estimators.info_nce(normal(4, 2), normal(4, 2)), "5 folds"),
        (lambda: estimators.clusters(9, 3, 2, 1.0), "classes=3"),
    ],
)
def test_input_that_cannot_be_used_is_refused_with_a_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()
