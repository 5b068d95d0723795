"""Unbiased information: brute force over pairings, the definitions written out, and coverage on planted sources."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ridge_utils.unbiased import ORDER_TWO, UnbiasedInformation, in_halves, ridge_fall, unbiased_information
from tests.tables import mutual_information

KERNELS = [ORDER_TWO, replace(ORDER_TWO, bandwidth=0.4)]


def samples(n, d=5, seed=0, layers=()):
    return torch.randn(*layers, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def squared_kernel(x, estimator):
    """A as it is defined, by differences of all pairs, the diagonal 0."""
    x = x / x.norm(dim=-1, keepdim=True) if estimator.normalize else x
    distance = (x[:, None] - x[None]).norm(dim=-1)
    return (-((distance / estimator.bandwidth) ** 2)).exp().fill_diagonal_(0)


def mean(matrix):
    return matrix.sum() / (len(matrix) * (len(matrix) - 1))


@pytest.mark.parametrize("estimator", KERNELS)
@pytest.mark.parametrize("n", [4, 127, 128, 129, 300])
def test_means_are_those_of_the_definition(estimator, n):
    x, y = samples(n, seed=1), samples(n, 3, seed=2)
    a, b = squared_kernel(x, estimator), squared_kernel(y, estimator)
    result = unbiased_information(x, y, estimator)
    expected = torch.stack([mean(a), mean(b), mean(a * b), mean(a**2), mean(b**2)])
    torch.testing.assert_close(torch.stack(result.means)[:, 0], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("estimator", KERNELS)
def test_plug_in_is_the_estimate_of_order_two(estimator):
    x, y = samples(90, seed=3), samples(90, seed=4)
    plug_in = unbiased_information(x, y, estimator).means.plug_in(90)[0]
    torch.testing.assert_close(plug_in, mutual_information(x, y, estimator))


@pytest.mark.parametrize("n", [4, 5, 6, 7])
def test_null_has_the_moments_over_all_pairings(n):
    x, y = samples(n, seed=n), samples(n, 2, seed=n + 1)
    a, b = squared_kernel(x, ORDER_TWO), squared_kernel(y, ORDER_TWO)
    orders = [list(order) for order in itertools.permutations(range(n))]
    means = torch.stack([mean(a * b[order][:, order]) for order in orders])
    result = unbiased_information(x, y)
    product = result.means[0] * result.means[1]
    torch.testing.assert_close(means.mean(), product[0])
    z = (result.means[2] - product) / means.std(correction=0)
    torch.testing.assert_close(result.z, z, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_null_agrees_with_shuffles():
    x, y = samples(60, seed=5), samples(60, 3, seed=6)
    a, b = squared_kernel(x, ORDER_TWO), squared_kernel(y, ORDER_TWO)
    generator = torch.Generator().manual_seed(7)
    orders = [torch.randperm(60, generator=generator) for _ in range(20_000)]
    means = torch.stack([mean(a * b[order][:, order]) for order in orders])
    result = unbiased_information(x, y)
    spread = (result.means[2] - result.means[0] * result.means[1]) / result.z
    assert abs(spread.item() / means.std().item() - 1) < 4 / math.sqrt(2 * 20_000) * 1.5
    filled = [matrix.sum() / 60**2 + 1 / 60 for matrix in (a, b)]
    plug_in = ((means * 59 / 60 + 1 / 60) / (filled[0] * filled[1])).log()
    assert (
        abs((plug_in.mean() - result.means.plug_in_null(60)[0]).item())
        < 4 * plug_in.std().item() / math.sqrt(20_000) + 1e-5
    )


def test_errors_are_those_of_leaving_samples_out():
    x, y = samples(30, seed=8, layers=(3,)), samples(30, seed=9)
    result = unbiased_information(x, y)
    keep = [[i for i in range(30) if i != out] for out in range(30)]
    others = torch.stack([_plain(unbiased_information(x[:, index], y[index])) for index in keep])
    torch.testing.assert_close(result.information.value, 30 * _plain(result) - 29 * others.mean(0))
    error = ((29 / 30) * (others - others.mean(0)).square().sum(0)).sqrt()
    torch.testing.assert_close(result.information.standard_error, error)
    gap = others[:, 0] - others[:, 2]
    error = ((29 / 30) * (gap - gap.mean()).square().sum()).sqrt()
    fall = result.estimate(lambda means: means.at(0).information - means.at(2).information)
    torch.testing.assert_close(fall.standard_error, error)


def _plain(result: UnbiasedInformation):
    return result.means.information


def test_scale_free_forms_are_their_definitions():
    x, y = samples(40, seed=10), samples(40, seed=11) + samples(40, seed=10)
    a, b = squared_kernel(x, ORDER_TWO), squared_kernel(y, ORDER_TWO)
    off = ~torch.eye(40, dtype=torch.bool)
    result = unbiased_information(x, y)
    assert result.means.correlation.item() == pytest.approx(np.corrcoef(a[off], b[off])[0, 1])

    def u_centred(matrix):  # Szekely and Rizzo 2014
        rows = matrix.sum(1, keepdim=True) / 38
        return (matrix - rows - rows.T + matrix.sum() / (39 * 38)).fill_diagonal_(0)

    a, b = u_centred(a), u_centred(b)
    assert result.alignment.item() == pytest.approx(((a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()).item())


@pytest.mark.parametrize("rounding", [0.0, 1e-9])
def test_what_does_not_vary_correlates_with_nothing(rounding):
    x, same = samples(50, seed=19), samples(1, seed=20).expand(50, -1) + rounding * samples(50, seed=21)
    for result in (unbiased_information(x, same), unbiased_information(same, x)):
        assert result.correlation.value.item() == result.correlation.standard_error.item() == 0
        assert result.alignment.item() == 0


def test_single_precision_is_as_near_as_it_says():
    x, y = samples(400, 64, seed=13, layers=(2,)), samples(400, 64, seed=14)
    double, single = (unbiased_information(x, y, products=dtype) for dtype in (torch.float64, torch.float32))
    torch.testing.assert_close(single.information.value, double.information.value, rtol=0, atol=1e-6)


def test_a_layer_of_many_is_as_it_is_alone(monkeypatch):
    x, y = samples(50, seed=15, layers=(5,)), samples(50, seed=16)
    alone = torch.stack([unbiased_information(layer, y).information.value[0] for layer in x])
    monkeypatch.setattr("ridge_utils.unbiased._HELD", 2 * 50 * 5)  # two layers at a time
    torch.testing.assert_close(unbiased_information(x, y).information.value, alone)


SOURCES = {}


def source(make):
    SOURCES[make.__name__] = make
    return make


@source
def classes(n, generator):
    label = torch.randint(10, (n,), generator=generator)
    centres = torch.randn(10, 16, generator=torch.Generator().manual_seed(1))
    return centres[label] + torch.randn(n, 16, generator=generator), torch.eye(10)[label]


@source
def gaussians(n, generator):
    x = torch.randn(n, 4, generator=generator)
    return x + torch.randn(n, 4, generator=generator) / 2, x


@source
def student(n, generator):
    """Multivariate Student, 2 degrees of freedom: heavy tails (Czyz et al. 2023)."""
    z = torch.randn(n, 6, generator=generator)
    t = z / (torch.randn(n, 2, generator=generator).square().sum(-1, keepdim=True) / 2).sqrt()
    return t[:, :3], 0.75 * t[:, :3] + 0.66 * t[:, 3:]


@source
def half_cube(n, generator):
    """Gaussians, each coordinate to the power of 1.5 (Czyz et al. 2023)."""
    return tuple(x.abs() ** 1.5 * x.sign() for x in gaussians(n, generator))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_intervals_cover_and_small_samples_give_the_value_of_large_ones(name):
    generator = torch.Generator().manual_seed(5)
    large = [unbiased_information(*SOURCES[name](8000, generator)).information for _ in range(4)]
    truth = torch.stack([estimate.value[0] for estimate in large]).mean()
    for n, repetitions in ((100, 800), (200, 800), (1000, 300)):
        estimates = [unbiased_information(*SOURCES[name](n, generator)).information for _ in range(repetitions)]
        low, high = torch.stack([estimate.interval()[0] for estimate in estimates]).T
        covered = ((low <= truth) & (truth <= high)).double().mean().item()
        sampling = 3 * math.sqrt(0.95 * 0.05 / repetitions)
        assert 0.93 - sampling < covered < 0.98 + sampling
        values = torch.stack([estimate.value[0] for estimate in estimates])
        error = math.sqrt(values.var().item() / repetitions + large[0].standard_error.item() ** 2 / 4)
        assert abs(values.mean() - truth) < 4 * error


def test_a_planted_fall_is_found_and_none_is_not():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(4, (400,), generator=generator)
    noise = torch.randn(6, 400, 8, generator=generator)
    clear = torch.eye(8)[label] * torch.tensor([1, 2, 4, 6, 2, 1.0])[:, None, None] + noise
    chosen, fall = ridge_fall(clear, torch.eye(4)[label])
    assert chosen == [3, 3] and fall.interval()[0] > 0
    flat = torch.eye(8)[label] * 2 + noise
    falls = [ridge_fall(flat, torch.eye(4)[label], seed=seed)[1] for seed in range(20)]
    assert sum(bool(fall.interval()[0] > 0) for fall in falls) <= 4


def test_plug_in_of_small_samples_is_foretold_by_a_large_one():
    x, y = classes(4000, torch.Generator().manual_seed(3))
    large = unbiased_information(x, y)
    index = torch.randperm(4000, generator=torch.Generator().manual_seed(4)).chunk(40)
    shuffled = torch.randperm(4000, generator=torch.Generator().manual_seed(5))
    for estimate, targets in ((large.plug_in(100).value, y), (large.means.plug_in_null(100), y[shuffled])):
        values = torch.stack([mutual_information(x[part], targets[part], ORDER_TWO) for part in index])
        assert abs(values.mean() - estimate[0]) < 4 * values.std() / math.sqrt(40)


def test_layers_are_judged_on_the_half_that_did_not_choose_them():
    x, y = samples(60, seed=17, layers=(4,)), samples(60, seed=18)
    halves = in_halves(x, y, seed=3)
    assert sorted(torch.cat(halves.indices).tolist()) == list(range(60))
    alone = [unbiased_information(x[:, index], y[index]) for index in halves.indices]
    best = [int(half.means.correlation[1:].argmax()) + 1 for half in alone]
    chosen = halves.chosen([1, 2, 3], lambda means: means.correlation)
    assert chosen == best[::-1]
    judged = halves.estimate(chosen, lambda means, layer: means.at(layer).correlation)
    values = [half.correlation.value[layer] for half, layer in zip(alone, chosen, strict=True)]
    assert judged.value.item() == pytest.approx(float(sum(values)) / 2)
