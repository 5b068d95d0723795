"""Stochastic Lanczos quadrature against the eigendecomposition, closed forms, and its own promise of an error."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ridge_utils import information
from ridge_utils.audit import quadrature
from ridge_utils.audit.quadrature import Gram, Settings
from ridge_utils.errors import InputError

N, D = 300, 40
LABELS = torch.arange(N) % 12
SMALL = Settings(rank=24, probes=8, steps=40)


def random_samples(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def anisotropic(seed=0):
    """States that all point the same way, know the target, and have a spectrum that decays."""
    noise = random_samples(N, D, seed=seed) * torch.linspace(1.5, 0.01, D)
    return 3 * random_samples(D, seed=1) + noise + 0.3 * TARGETS


TARGETS = random_samples(12, D, seed=2)[LABELS]
KINDS = {
    "anisotropic": anisotropic(),
    "isotropic": random_samples(N, D, seed=3),
    "low rank": random_samples(N, 4, seed=4) @ random_samples(4, D, seed=5),
    "clusters": TARGETS,
    "equal": TARGETS[:1].expand(N, D),
}


@pytest.mark.parametrize("bandwidth", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_entropy_is_that_of_the_eigenvalues_within_its_error(kind, bandwidth):
    x = KINDS[kind]
    exact = information.entropy(information.gram_matrix(x, information.Estimator(bandwidth=bandwidth))).item()
    found = quadrature.entropy(Gram(x, bandwidth), SMALL)
    assert abs(found.value.item() - exact) <= 2 * found.error.item() + 2e-5
    assert found.error.item() <= max(0.01 * exact, 2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_information_is_that_of_the_eigenvalues_within_its_error(kind):
    hidden = torch.stack([KINDS[kind], KINDS["isotropic"]])
    exact = information.predictive_information(hidden, TARGETS)
    found = quadrature.predictive_information(hidden, TARGETS, settings=SMALL)
    assert found.value.shape == found.error.shape == (2,)
    assert ((found.value - exact).abs() <= 2 * found.error + 2e-5).all()
    assert (found.error <= 0.02).all()


@pytest.mark.slow
def test_the_error_holds_as_often_as_it_says():
    x = anisotropic()
    exact = information.entropy(information.gram_matrix(x)).item()
    inside = 0
    for seed in range(100):
        found = quadrature.entropy(Gram(x), Settings(rank=10, probes=6, steps=30, seed=seed))
        inside += abs(found.value.item() - exact) <= found.error.item()
    # A chance of 95 % gives fewer than 88 of 100 once in 500 times.
    assert inside >= 88


@pytest.mark.parametrize("spread", [0.03, 0.1, 0.3])
def test_the_error_holds_for_states_that_hardly_differ(spread):
    # As the first layers' do: nearly all eigenvalues are as small as the rounding of float32.
    x = 3 * random_samples(D, seed=1) + spread * random_samples(900, D, seed=11) * torch.linspace(1.5, 0.01, D)
    exact = information.entropy(information.gram_matrix(x)).item()
    found = quadrature.entropy(Gram(x))
    assert abs(found.value.item() - exact) <= found.error.item() <= 0.01 * exact + 2e-5


def test_clusters_far_apart_have_the_entropy_of_their_sizes():
    rows = torch.eye(4)[torch.tensor([0] * 40 + [1] * 30 + [2] * 20 + [3] * 10)]
    shares = (0.4, 0.3, 0.2, 0.1)
    found = quadrature.entropy(Gram(rows, bandwidth=0.05))
    assert found.value.item() == pytest.approx(-sum(p * math.log(p) for p in shares), abs=1e-5)


@pytest.mark.parametrize("bandwidth", [0.3, 1.0])
def test_the_entropy_of_repeated_samples_is_exact(bandwidth):
    labels = torch.arange(N) % 5
    pairs = Gram(TARGETS, bandwidth) * Gram(random_samples(5, 3, seed=10)[labels], bandwidth)
    both = information.joint_entropy(
        information.gram_matrix(TARGETS, information.Estimator(bandwidth=bandwidth)),
        information.gram_matrix(random_samples(5, 3, seed=10)[labels], information.Estimator(bandwidth=bandwidth)),
    )
    alone = information.entropy(information.gram_matrix(TARGETS, information.Estimator(bandwidth=bandwidth)))
    for gram, exact in ((Gram(TARGETS, bandwidth), alone), (pairs, both)):
        found = quadrature.entropy(gram)
        assert found.value.item() == pytest.approx(exact.item(), abs=1e-9)
        assert found.error.item() == 0


@pytest.mark.parametrize("other", ["clusters", "isotropic"])
def test_a_product_is_that_of_the_matrix_and_keeping_it_changes_nothing(other):
    x, y, vectors = KINDS["anisotropic"], KINDS[other], random_samples(N, 5, seed=8)
    gram = information.gram_matrix(x) * information.gram_matrix(y) * N
    for memory in (0, 2**30):
        product = Gram(x, memory=memory) * Gram(y, memory=memory)
        torch.testing.assert_close((product @ vectors).double(), gram @ vectors.double(), atol=1e-6, rtol=0)
        assert product.square_trace == pytest.approx(gram.square().sum().item(), rel=1e-6)


class Largest(TorchDispatchMode):
    """The most bytes of a tensor that is made within this context."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        out = call(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, torch.Tensor):
                self.bytes = max(self.bytes, one.nbytes)
        return out


@pytest.mark.parametrize(("memory", "entries"), [(0, 64), (2**30, N)])
def test_no_matrix_is_made_in_float64_and_none_at_all_where_memory_is_short(monkeypatch, memory, entries):
    monkeypatch.setattr(quadrature, "_BLOCK", 64 * N)
    hidden = KINDS["isotropic"][None]
    with Largest() as largest:
        quadrature.predictive_information(hidden, TARGETS, settings=SMALL, memory=memory)
    assert largest.bytes <= max(4 * entries * N, 8 * (24 + 8) * 40 * 40 * 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Gram(torch.eye(5)) * Gram(torch.eye(4)), "over 5 and 4"),
        (lambda: Gram(torch.zeros(5, 3)), "index 0 of x.* zero vector"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
