"""The estimator against closed forms, another library (NumPy, written from the paper's definition) and properties."""

import doctest
import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from ridge_utils import information, kernels, unbiased
from ridge_utils.errors import InputError
from ridge_utils.information import Estimator
from tests.tables import mutual_information

KERNELS = get_args(information.Kernel)
NARROW = Estimator(bandwidth=0.05)


def random_samples(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_mutual_information(x, y, kernel="gaussian", s=1.0, alpha=1.0):
    """The paper's definition, entry by entry, in NumPy."""

    def gram(samples):
        u = [row / math.sqrt(sum(v * v for v in row)) for row in np.asarray(samples, dtype=float)]
        k = np.empty((len(u), len(u)))
        for i in range(len(u)):
            for j in range(len(u)):
                squared = sum((a - b) ** 2 for a, b in zip(u[i], u[j], strict=True))
                if kernel == "gaussian":
                    k[i, j] = math.exp(-squared / (2 * s * s))
                elif kernel == "laplacian":
                    k[i, j] = math.exp(-math.sqrt(squared) / s)
                elif kernel == "linear":
                    k[i, j] = sum(a * b for a, b in zip(u[i], u[j], strict=True))
                elif kernel == "polynomial":
                    k[i, j] = (1 + sum(a * b for a, b in zip(u[i], u[j], strict=True)) / s**2) ** 2
                else:
                    pytest.fail(f"The kernel {kernel} is not written out here.")
        return k / np.trace(k)

    def renyi(g):
        values = [v for v in np.linalg.eigvals(g).real if v > 1e-14]
        if alpha == 1:
            return -sum(v * math.log(v) for v in values)
        return math.log(sum(v**alpha for v in values)) / (1 - alpha)

    a, b = gram(x), gram(y)
    return renyi(a) + renyi(b) - renyi(a * b / np.trace(a * b))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("alpha", [1.0, 2.0, 1.5])
def test_equals_the_definition_written_out_in_numpy(kernel, alpha):
    x, y = random_samples(12, 5), random_samples(12, 3, seed=1)
    got = mutual_information(x, y, Estimator(kernel, 0.7, alpha))
    assert got.item() == pytest.approx(slow_mutual_information(x, y, kernel, 0.7, alpha), abs=1e-9)


@pytest.mark.parametrize("bandwidth", [0.05, 1.0, 4.0])
def test_orthogonal_vectors_have_the_spectrum_of_equal_distances(bandwidth):
    # All distances are sqrt(2): the eigenvalues are (1 + (n-1) k)/n once and (1-k)/n, n-1 times.
    n, k = 9, math.exp(-2 / (2 * bandwidth**2))
    values = np.array([(1 + (n - 1) * k) / n] + [(1 - k) / n] * (n - 1))
    expected = -np.sum(values * np.log(values))
    got = information.entropy(information.gram_matrix(torch.eye(n), Estimator(bandwidth=bandwidth)))
    assert got.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_identical_vectors_have_no_entropy_and_no_information(kernel):
    x = random_samples(1, 6).expand(10, 6)
    assert information.entropy(information.gram_matrix(x, Estimator(kernel))).item() == pytest.approx(0, abs=1e-12)
    assert mutual_information(x, random_samples(10, 4), Estimator(kernel)).item() == pytest.approx(0, abs=1e-12)


def test_clusters_have_the_entropy_of_their_sizes():
    sizes = [1, 2, 3, 6]
    x = torch.eye(4).repeat_interleave(torch.tensor(sizes), dim=0)
    shares = np.array(sizes) / sum(sizes)
    got = information.entropy(information.gram_matrix(x, NARROW))
    assert got.item() == pytest.approx(-np.sum(shares * np.log(shares)), abs=1e-12)


def test_information_of_clusters_is_the_shannon_information_of_their_labels():
    x_label = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    y_label = torch.tensor([0, 0, 1, 1, 1, 0, 1, 1])
    joint = np.zeros((3, 2))
    for a, b in zip(x_label, y_label, strict=True):
        joint[a, b] += 1 / 8
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    expected = np.sum(joint[joint > 0] * np.log((joint / outer)[joint > 0]))
    got = mutual_information(torch.eye(3)[x_label], torch.eye(2)[y_label], NARROW)
    assert got.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_a_variable_tells_all_about_itself_when_clusters_are_far_apart(alpha):
    x = torch.eye(4).repeat_interleave(3, dim=0)
    gram = information.gram_matrix(x, NARROW)
    got = mutual_information(x, x, Estimator(bandwidth=0.05, alpha=alpha))
    assert got.item() == pytest.approx(information.entropy(gram, alpha).item(), abs=1e-10)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000), n=st.integers(2, 25), bandwidth=st.floats(0.1, 3), kernel=st.sampled_from(KERNELS[:2])
)
def test_information_lies_between_zero_and_the_smaller_entropy(seed, n, bandwidth, kernel):
    x, y = random_samples(n, 4, seed=seed), random_samples(n, 3, seed=seed + 1)
    estimator = Estimator(kernel, bandwidth)
    value = mutual_information(x, y, estimator).item()
    entropies = [information.entropy(information.gram_matrix(z, estimator)).item() for z in (x, y)]
    assert -1e-10 <= value <= min(entropies) + 1e-10
    assert max(entropies) <= math.log(n) + 1e-10


def test_length_does_not_matter_once_normalised_and_does_otherwise():
    x, y = random_samples(15, 6), random_samples(15, 4, seed=1)
    scale = torch.linspace(0.1, 10, 15).unsqueeze(1)
    value = mutual_information(x, y)
    torch.testing.assert_close(mutual_information(x * scale, y), value)
    assert (mutual_information(x * scale, y, Estimator(normalize=False)) - value).abs() > 1e-2


@pytest.mark.parametrize("kernel", KERNELS)
def test_order_two_is_minus_the_log_of_the_squared_trace(kernel):
    gram = information.gram_matrix(random_samples(20, 5), Estimator(kernel))
    expected = -torch.log(torch.trace(gram @ gram))
    torch.testing.assert_close(information.entropy(gram, alpha=2), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("gap", [1e-4, 1e-7, 1e-14])
@pytest.mark.parametrize("sign", [-1, 1])
def test_order_one_is_continuous(gap, sign):
    gram = information.gram_matrix(random_samples(20, 5), Estimator(bandwidth=0.5))
    at_one = information.entropy(gram).item()
    assert information.entropy(gram, alpha=1 + sign * gap).item() == pytest.approx(at_one, abs=20 * gap + 1e-7)


def test_entropy_falls_with_its_order():
    gram = information.gram_matrix(random_samples(20, 5), Estimator(bandwidth=0.5))
    values = [information.entropy(gram, alpha).item() for alpha in (0.25, 0.5, 0.999, 1, 1.001, 2, 4)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("alpha", [0.1, 500, 1e5])
def test_extreme_orders_are_neither_rounding_noise_nor_overflow(alpha):
    # Ten clusters of equal size: every order gives ln 10, whatever rounding leaves in the other 190 eigenvalues.
    gram = information.gram_matrix(torch.eye(10).repeat_interleave(20, dim=0), NARROW)
    assert information.entropy(gram, alpha).item() == pytest.approx(math.log(10), abs=1e-9)


def test_profile_is_layer_by_layer_and_float64_whatever_comes_in():
    hidden, targets = random_samples(4, 12, 6).float(), random_samples(12, 6, seed=1).float()
    profile = information.predictive_information(hidden, targets, Estimator(bandwidth=0.8))
    assert profile.shape == (4,)
    assert profile.dtype == torch.float64
    for layer in range(4):
        expected = mutual_information(hidden[layer], targets, Estimator(bandwidth=0.8))
        torch.testing.assert_close(profile[layer], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("bandwidth", [0.7, "median"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_samples_of_any_size_have_the_profiles_of_their_rows_alone(kernel, bandwidth):
    hidden, targets = random_samples(3, 40, 6), random_samples(40, 5, seed=1)
    samples = [torch.randperm(40)[:17], torch.arange(40), torch.tensor([3, 1])]
    estimator = Estimator(kernel, bandwidth, alpha=1.5)
    found = information.predictive_information(hidden, targets, estimator, samples=samples)
    assert found.shape == (3, 3)
    for number, sample in enumerate(samples):
        alone = information.predictive_information(hidden[:, sample], targets[sample], estimator)
        torch.testing.assert_close(found[number], alone, atol=1e-12, rtol=0)


def test_gram_matrix_never_makes_an_n_n_d_tensor():
    n, d = 300, 400
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        information.gram_matrix(random_samples(n, d))
    assert largest <= n * max(n, d)


def test_ridge_layer_is_the_first_maximum():
    assert information.ridge_layer(torch.tensor([0.0, 0.3, 0.2])).item() == 1
    assert information.ridge_layer(torch.tensor([[0.1, 0.5, 0.5], [0.9, 0.1, 0.9]])).tolist() == [1, 0]


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def test_the_linear_kernel_has_the_entropy_of_the_squared_singular_values():
    x = random_samples(20, 6)
    squares = np.linalg.svd(x.numpy(), compute_uv=False) ** 2
    shares = squares / squares.sum()
    got = information.entropy(information.gram_matrix(x, Estimator("linear", normalize=False)))
    assert got.item() == pytest.approx(-np.sum(shares * np.log(shares)), abs=1e-12)


# The median rule.


def test_the_median_bandwidth_is_the_median_distance():
    x = random_samples(2, 7, 4)  # 21 pairs
    got = information.median_bandwidth(x)
    assert got.tolist() == pytest.approx([np.median(pdist(part.numpy())) for part in x], abs=1e-12)
    assert information.median_bandwidth(3 * x).tolist() == pytest.approx((3 * got).tolist())


def test_equal_rows_do_not_count_for_the_median_bandwidth():
    x = torch.eye(3).repeat_interleave(torch.tensor([8, 1, 1]), dim=0)  # 28 of 45 pairs are equal
    assert information.median_bandwidth(x).item() == pytest.approx(math.sqrt(2))
    # Rounding leaves some 1e-8 between rows that are equal: float32 rows far from the origin.
    same = (100 + random_samples(1, 300)).float().expand(10, 300).contiguous()
    assert information.median_bandwidth(same).item() == 1
    assert information.entropy(information.gram_matrix(same, Estimator(bandwidth="median"))).item() == pytest.approx(
        0, abs=1e-9
    )


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "polynomial"])
def test_by_the_median_rule_each_layer_and_the_targets_have_their_own_bandwidth(kernel):
    hidden, targets = random_samples(3, 9, 5) * torch.tensor([1.0, 10.0, 0.1])[:, None, None], random_samples(9, 4)
    got = information.predictive_information(hidden, targets, Estimator(kernel, "median", normalize=False))

    def gram_matrix(x):
        return information.gram_matrix(x, Estimator(kernel, information.median_bandwidth(x).item(), normalize=False))

    gram_y = gram_matrix(targets)
    for layer, states in enumerate(hidden):
        gram = gram_matrix(states)
        expected = information.entropy(gram) + information.entropy(gram_y) - information.joint_entropy(gram, gram_y)
        assert got[layer].item() == pytest.approx(expected.item(), abs=1e-12)


# The permutation null.


def shuffles(n, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(n, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("estimator", [Estimator(), Estimator("laplacian", alpha=2.0), Estimator(bandwidth="median")])
def test_the_null_is_information_about_shuffled_targets(estimator):
    hidden, targets = random_samples(3, 14, 5), random_samples(14, 4, seed=1)
    null = information.permutation_null(hidden, targets, 6, 3, estimator)
    assert null.shape == (6, 3)
    expected = [information.predictive_information(hidden, targets[order], estimator) for order in shuffles(14, 6, 3)]
    torch.testing.assert_close(null, torch.stack(expected))


def test_states_that_know_the_target_are_above_every_shuffle_and_others_are_not():
    targets = torch.eye(5, dtype=torch.float64).repeat(12, 1)
    knows = targets @ random_samples(5, 8) + 0.1 * random_samples(60, 8, seed=1)
    hidden = torch.stack([knows, random_samples(60, 8, seed=2)])
    found = information.predictive_information(hidden, targets)
    null = information.permutation_null(hidden, targets, 40)
    assert found[0] > null[:, 0].max()
    assert null[:, 1].min() < found[1] < null[:, 1].max()
    excess = found - null.mean(0)
    assert excess[0] > 0.5 * found[0]
    assert abs(excess[1]) < 0.1 * found[1]


def test_there_is_no_null_where_all_targets_are_the_same():
    null = information.permutation_null(random_samples(2, 10, 3), torch.ones(10, 3), 5)
    torch.testing.assert_close(null, torch.zeros(5, 2, dtype=torch.float64))


def test_the_number_of_threads_changes_no_number_and_is_given_back():
    hidden, targets = random_samples(5, 30, 8), random_samples(30, 4, seed=1)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(information.permutation_null(hidden, targets, 4))
            found.append(information.predictive_information(hidden, targets).unsqueeze(0))
            with pytest.raises(InputError, match=r"hidden\[2\]"):
                information.predictive_information(torch.stack([hidden[0], hidden[1], 0 * hidden[2]]), targets)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[3])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: information.gram_matrix(torch.zeros(4, 3)), "index 0 .* zero vector"),
        (lambda: information.entropy(torch.eye(3)), "trace 3"),
        (lambda: information.entropy(torch.tensor([[0.5, 0.9], [0.9, 0.5]])), "negative eigenvalue"),
        (lambda: information.predictive_information(torch.stack([X, 0 * X]), X), r"hidden\[1\].* zero vector"),
        (lambda: information.gram_matrix(0 * X, Estimator("linear", normalize=False)), "All 5 samples are zero"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


@pytest.mark.parametrize("module", [information, kernels, unbiased], ids=lambda module: module.__name__)
def test_the_examples_give_what_they_say(module):
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).failed == 0


def test_every_public_name_of_information_has_an_example():
    own = [value for value in vars(information).values() if getattr(value, "__module__", "") == information.__name__]
    public = [function for function in own if not function.__name__.startswith("_")]
    public += [information.Estimator, information.gram_matrix, information.median_bandwidth]
    public += [information.unbiased_information, information.ridge_fall]
    assert [one.__name__ for one in public if ">>>" not in one.__doc__] == []
