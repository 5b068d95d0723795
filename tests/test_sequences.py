"""The sequence kernel against loops over its definition, against one-token information, and properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ridge_utils import information, sequences
from ridge_utils.errors import InputError
from ridge_utils.sequences import sequence_gram_matrices, sequence_information

PAIRS = ("all", "aligned")


def random_samples(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_gram(x, t, s, pairs="all"):
    """The definition, pair by pair."""
    u = [[row / math.sqrt(sum(v * v for v in row)) for row in sequence[:t]] for sequence in np.asarray(x, dtype=float)]
    n = len(u)
    k = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            for a in range(t):
                for b in range(t) if pairs == "all" else [a]:
                    k[i, j] += math.exp(-sum((u[i][a] - u[j][b]) ** 2) / (2 * s * s))
    k /= t**2 if pairs == "all" else t
    return np.array([[k[i, j] / math.sqrt(k[i, i] * k[j, j]) / n for j in range(n)] for i in range(n)])


def slow_entropy(gram):
    return -sum(v * math.log(v) for v in np.linalg.eigvals(gram).real if v > 1e-14)


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("bandwidth", [0.3, 1.0])
@pytest.mark.parametrize("at_a_time", [1, 200, 2**21])  # one sequence at a time, a few, all at once
def test_equals_the_definition_in_loops(monkeypatch, bandwidth, at_a_time, pairs):
    monkeypatch.setattr(sequences, "_PAIRS", at_a_time)
    x, steps = random_samples(7, 5, 4), [4, 1, 3]
    got = sequence_gram_matrices(x, steps, bandwidth, pairs)
    assert got.shape == (3, 7, 7)
    for gram, t in zip(got, steps, strict=True):
        np.testing.assert_allclose(gram, slow_gram(x, t, bandwidth, pairs), atol=1e-14, rtol=0)


@pytest.mark.parametrize("pairs", PAIRS)
def test_information_equals_the_definition_in_loops(pairs):
    hidden, targets, steps = random_samples(3, 6, 4, 5), random_samples(6, 4, 3, seed=1), [2, 4]
    got = sequence_information(hidden, targets, steps, 0.6, pairs)
    assert got.shape == (3, 2)
    for layer in range(3):
        for i, t in enumerate(steps):
            a, b = slow_gram(hidden[layer], t, 0.6, pairs), slow_gram(targets, t, 0.6, pairs)
            expected = slow_entropy(a) + slow_entropy(b) - slow_entropy(a * b / np.trace(a * b))
            assert got[layer, i].item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("pairs", PAIRS)
def test_samples_are_estimated_as_if_each_were_all_there_is(pairs):
    hidden, targets = random_samples(3, 9, 4, 5), random_samples(9, 4, 3, seed=1)
    samples = [torch.tensor([8, 0, 3, 5]), torch.tensor([1, 2, 4, 6, 7])]
    together = sequence_information(hidden, targets, [1, 4], 0.6, pairs, samples=samples)
    assert together.shape == (2, 3, 2)
    for profile, index in zip(together, samples, strict=True):
        alone = sequence_information(hidden[:, index], targets[index], [1, 4], 0.6, pairs)
        torch.testing.assert_close(profile, alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("bandwidth", [1e-12, 0.05, 1.0])
def test_one_step_is_the_predictive_information_of_one_token(bandwidth, pairs):
    hidden, targets = random_samples(4, 30, 6, 8).float(), random_samples(30, 6, 5, seed=1).float()
    got = sequence_information(hidden, targets, [3, 1], bandwidth, pairs)
    assert got.dtype == torch.float64
    expected = information.predictive_information(
        hidden[:, :, 0], targets[:, 0], information.Estimator(bandwidth=bandwidth)
    )
    torch.testing.assert_close(got[:, 1], expected, atol=1e-10, rtol=0)
    gram = sequence_gram_matrices(targets, [1], bandwidth, pairs)[0]
    torch.testing.assert_close(
        gram, information.gram_matrix(targets[:, 0], information.Estimator(bandwidth=bandwidth)), atol=1e-14, rtol=0
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(2, 15),
    t=st.integers(1, 6),
    bandwidth=st.floats(0.1, 3),
    pairs=st.sampled_from(PAIRS),
)
def test_information_lies_between_zero_and_the_smaller_entropy(seed, n, t, bandwidth, pairs):
    hidden, targets = random_samples(1, n, t, 4, seed=seed), random_samples(n, t, 3, seed=seed + 1)
    steps = range(1, t + 1)
    grams = [sequence_gram_matrices(x, steps, bandwidth, pairs) for x in (hidden[0], targets)]
    for gram in grams:
        torch.testing.assert_close(gram.diagonal(dim1=1, dim2=2), torch.full((t, n), 1 / n, dtype=torch.float64))
        torch.testing.assert_close(gram, gram.mT)
        assert torch.linalg.eigvalsh(gram).min() > -1e-12
    value = sequence_information(hidden, targets, steps, bandwidth, pairs)[0]
    smaller = torch.minimum(*(information.entropy(gram) for gram in grams))
    assert (value >= -1e-10).all()
    assert (value <= smaller + 1e-10).all()


def test_entropy_falls_with_the_step_over_all_pairs_and_can_grow_over_aligned_ones():
    x = random_samples(40, 30, 5)
    over_all = information.entropy(sequence_gram_matrices(x, [1, 5, 30]))
    assert (over_all.diff() < -0.1).all()
    # Twins that part at the third step: only then do they count as two.
    twins = torch.cat([x, torch.cat([x[:, :2], random_samples(40, 28, 5, seed=1)], dim=1)])
    aligned = information.entropy(sequence_gram_matrices(twins, [2, 30], 0.1, "aligned"))
    assert aligned[1] - aligned[0] > 0.5


X = random_samples(5, 4, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sequence_gram_matrices(X, [1, 5]), "from 1 to 4"),
        (lambda: sequence_gram_matrices(X * (torch.arange(20).view(5, 4, 1) != 18), [3]), r"index \(4, 2\)"),
        (lambda: sequence_information(X[None], X[:4], [1]), r"\(1, 5, 4, 3\) and \(4, 4, 3\)"),
        (lambda: sequence_information(torch.stack([X, 0 * X]), X, [1]), r"hidden\[1\]"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
