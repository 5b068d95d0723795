"""Ratios, each measured against a reference in the same run: `make bench` prints them.

They are no tests of speed: nothing here fails because a machine is slow.
"""

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from ridge_utils import information, models, quadrature, tasks
from ridge_utils.representations import collect, encode, pad

LAYERS, WIDTH = 31, 576  # the embedded model's
ROWS: list[tuple[str, float, float]] = []


@pytest.fixture(scope="module", autouse=True)
def report() -> Iterator[None]:
    yield
    print(f"\n\n{'measured against its reference':64} {'seconds':>9} {'reference':>9} {'ratio':>7}")
    for name, ours, reference in ROWS:
        print(f"{name:64} {ours:9.3f} {reference:9.3f} {ours / reference:7.2f}")
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}; medians of alternating runs")


def ratio(name: str, ours: Callable[[], object], reference: Callable[[], object], rounds: int = 5) -> None:
    """Run the two in turn, so that both see the same machine, and keep the medians."""
    times: tuple[list[float], list[float]] = ([], [])
    for call in (ours, reference):
        call()
    for _ in range(rounds):
        for call, kept in ((ours, times[0]), (reference, times[1])):
            started = time.perf_counter()
            call()
            kept.append(time.perf_counter() - started)
    ROWS.append((name, statistics.median(times[0]), statistics.median(times[1])))


@pytest.mark.parametrize("n", [200, 500])
def test_profile_against_its_eigenproblems(n: int) -> None:
    """The floor of the exact estimator is LAPACK: 2 L + 1 symmetric eigenproblems, values only."""
    hidden, targets = torch.randn(LAYERS, n, WIDTH), torch.randn(n, WIDTH)
    grams = [information.gram_matrix(hidden[0]) for _ in range(2 * LAYERS + 1)]
    ratio(
        f"predictive_information, N = {n}, {LAYERS} layers / its eigenvalues alone",
        lambda: information.predictive_information(hidden, targets),
        lambda: [torch.linalg.eigvalsh(gram) for gram in grams],
    )


def test_samples_against_one_at_a_time() -> None:
    """Samples of one pool share its inner products, the costly part of a Gram matrix."""
    hidden, targets = torch.randn(8, 500, WIDTH), torch.randn(500, WIDTH)
    samples = [torch.randperm(500)[:200] for _ in range(20)]
    ratio(
        "predictive_information, 20 samples of 200 of 500, 8 layers / one at a time",
        lambda: information.predictive_information(hidden, targets, samples=samples),
        lambda: [information.predictive_information(hidden[:, s], targets[s]) for s in samples],
        rounds=3,
    )


def test_quadrature_against_the_eigenvalues() -> None:
    """The entropy of states that point one way and have a spectrum that decays, as hidden states have."""
    x = 3 * torch.randn(WIDTH) + torch.randn(4000, WIDTH) * torch.linspace(1, 0.01, WIDTH)
    exact = information.entropy(information.gram_matrix(x)).item()
    found = quadrature.entropy(quadrature.Gram([x]))
    assert abs(found.value.item() - exact) < 0.01 * exact
    ratio(
        "quadrature.entropy, N = 4000 / all eigenvalues",
        lambda: quadrature.entropy(quadrature.Gram([x])),
        lambda: information.entropy(information.gram_matrix(x)),
        rounds=1,
    )


def test_permutation_null_against_its_eigenproblems() -> None:
    """The floor is one symmetric eigenproblem for each shuffle and layer, here one after the other.

    Below 1, threads pay; 200 shuffles of 31 layers, what the audit asks for, take ten times as long.
    """
    hidden, targets = torch.randn(LAYERS, 200, WIDTH), torch.randn(200, WIDTH)
    shuffles = 20
    gram = information.gram_matrix(hidden[0])
    ratio(
        f"permutation_null, N = 200, {LAYERS} layers, {shuffles} shuffles / its eigenvalues alone",
        lambda: information.permutation_null(hidden, targets, shuffles),
        lambda: [torch.linalg.eigvalsh(gram) for _ in range(shuffles * LAYERS)],
        rounds=3,
    )


def test_gram_matrix_against_pairwise_differences() -> None:
    """Against the textbook way, an N x N x d tensor of differences."""
    x = torch.randn(200, WIDTH, dtype=torch.float64)

    def textbook() -> np.ndarray:
        u = (x / x.norm(dim=1, keepdim=True)).numpy()
        gram = np.exp(-((u[:, None] - u[None]) ** 2).sum(-1) / 2)
        return gram / np.trace(gram)

    np.testing.assert_allclose(information.gram_matrix(x).numpy(), textbook(), atol=1e-12)
    ratio("gram_matrix, N = 200 / pairwise differences", lambda: information.gram_matrix(x), textbook)


def test_collect_against_a_bare_forward_pass() -> None:
    """Against the model's body alone on the same batches, all prompts of one length."""
    loaded = models.load(models.EMBEDDED, device="cpu")
    length = 39
    drawn = tasks.load("synthetic_arithmetic", "id", 200)
    examples = [example for example in drawn if len(encode(loaded, example)[0]) == length][:32]
    ids, mask = pad([encode(loaded, example)[0] for example in examples], loaded)

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, len(ids), 16):
                part = slice(start, start + 16)
                loaded.model.base_model(input_ids=ids[part], attention_mask=mask[part], use_cache=False)

    ratio(
        f"collect, {len(examples)} prompts of {length} tokens, 30 blocks / bare forward pass",
        lambda: collect(loaded, examples, 16, progress=False),
        bare,
        rounds=3,
    )
