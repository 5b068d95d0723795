"""Ratios, each measured against a reference in the same run: `make bench` prints them.

They are no tests of speed: nothing here fails because a machine is slow. What is compared is checked to be the same.
"""

import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

from ridge_utils import information, models, results, tasks
from ridge_utils.representations import collect, encode, pad

LAYERS, WIDTH = 31, 576  # the embedded model's
ROWS: list[dict[str, object]] = []


@pytest.fixture(scope="module", autouse=True)
def report(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    print(f"\n\n{'measured against its reference':78} {'seconds':>9} {'reference':>9} {'ratio':>7}")
    for row in ROWS:
        name = f"{row['what']}, N = {row['n']}, d = {row['d']} / {row['reference']}"
        memory = "" if pd.isna(row["memory"]) else f", {row['memory'] / 2**20:.0f} MiB"
        print(f"{name + memory:78} {row['seconds']:9.3f} {row['reference_seconds']:9.3f} {row['ratio']:7.2f}")
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}; medians of alternating runs")
    if request.config.getoption("--full") and not request.session.testsfailed:
        path = results.FOLDER / "benchmarks.csv"
        results.write(pd.DataFrame(ROWS), path, results.provenance({"layers": LAYERS}))
        print(f"written to {path}")


def ratio(
    what: str,
    reference: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    n: int,
    d: int = WIDTH,
    rounds: int = 5,
    memory: float = np.nan,
) -> None:
    """Run the two in turn, so that both see the same machine, and keep the medians."""
    calls = (ours, theirs)
    times: tuple[list[float], list[float]] = ([], [])
    if rounds > 1:
        for call in calls:
            call()
    for _ in range(rounds):
        for call, kept in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            kept.append(time.perf_counter() - started)
    add(what, reference, *(statistics.median(kept) for kept in times), n=n, d=d, memory=memory)


def add(
    what: str, reference: str, seconds: float, other: float, *, n: int, d: int = WIDTH, memory: float = np.nan
) -> None:
    """Keep a measurement; ``other`` is NaN where the reference would take too long, or more memory than there is."""
    numbers = {"n": n, "d": d, "seconds": seconds, "reference_seconds": other, "ratio": seconds / other}
    ROWS.append({"what": what, "reference": reference, **numbers, "memory": memory})


def peak_memory(function: Callable[..., object], *sizes: int) -> float:
    """Bytes that a call takes beyond what its process held before, in a process of its own.

    ``function(*sizes)`` prepares, and gives what is measured.
    """
    return alone(function, *sizes)[0]


def alone(function: Callable[..., object], *sizes: int) -> tuple[float, float]:
    """As :func:`peak_memory`, and the seconds of the call."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (function, *sizes))


def _peak(function: Callable[..., Callable[[], object]], *sizes: int) -> tuple[float, float]:
    call, process = function(*sizes), psutil.Process()
    held = [process.memory_info().rss]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            held.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    call()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return max(held) - held[0], seconds


def states(n: int, d: int = WIDTH, layers: int = LAYERS) -> tuple[Tensor, Tensor]:
    """As hidden states are: all point one way, know one of 12 targets, and have a spectrum that decays."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(12, d, generator=generator)[torch.arange(n) % 12]
    noise = torch.randn(layers, n, d, generator=generator) * torch.linspace(1, 0.02, d)
    return 2 * torch.randn(d, generator=generator) + noise + 0.3 * targets, targets


def profile(n: int, d: int = WIDTH, layers: int = LAYERS) -> Callable[[], Tensor]:
    hidden, targets = states(n, d, layers)
    information.predictive_information(hidden[:1, :10], targets[:10])  # what is loaded at the first call
    return lambda: information.predictive_information(hidden, targets)


def textbook(hidden: Tensor, targets: Tensor) -> np.ndarray:
    """The estimator as its formulas read: an N x N x d tensor of differences, and eigenvalues one after the other."""

    def gram(x: np.ndarray) -> np.ndarray:
        u = x / np.linalg.norm(x, axis=1, keepdims=True)
        return np.exp(-((u[:, None] - u[None]) ** 2).sum(-1) / 2)

    def entropy(kernel: np.ndarray) -> float:
        values = np.linalg.eigvalsh(kernel / np.trace(kernel)).clip(min=1e-300)
        return float(-(values * np.log(values)).sum())

    y = gram(targets.double().numpy())
    grams = (gram(states.double().numpy()) for states in hidden)
    return np.array([entropy(z) + entropy(y) - entropy(z * y) for z in grams])


@pytest.mark.sizes("n", [200, 500], full=[1000])
def test_profile_against_its_eigenproblems(n: int) -> None:
    """The floor of the exact estimator is LAPACK: 2 L + 1 symmetric eigenproblems, values only.

    The obvious way solves one after the other with all threads; the other floor solves as many at a time as there are
    threads, as the estimator does.
    """
    hidden, _ = states(n)
    gram = information.gram_matrix(hidden[0])
    ours = profile(n)
    what, count = f"profile of {LAYERS} layers", 2 * LAYERS + 1
    rounds = 5 if n < 1000 else 3
    memory = peak_memory(profile, n)
    one_by_one = [gram.clone() for _ in range(count)]
    ratio(
        *(
            what,
            "its eigenvalues, one matrix after the other",
            ours,
            lambda: [torch.linalg.eigvalsh(g) for g in one_by_one],
        ),
        n=n,
        rounds=rounds,
        memory=memory,
    )

    def at_a_time() -> None:
        with information._workers(gram.device) as each:
            each(lambda index: torch.linalg.eigvalsh(one_by_one[index].clone()), count)

    ratio(what, "its eigenvalues, as many matrices at a time as threads", ours, at_a_time, n=n, rounds=rounds)


@pytest.mark.sizes("n", [100], full=[200])
def test_profile_against_the_textbook(n: int) -> None:
    hidden, targets = states(n)
    found = information.predictive_information(hidden, targets)
    np.testing.assert_allclose(found.numpy(), textbook(hidden, targets), atol=1e-10)
    ratio(
        f"profile of {LAYERS} layers",
        "textbook version, pairwise differences",
        lambda: information.predictive_information(hidden, targets),
        lambda: textbook(hidden, targets),
        n=n,
        rounds=1,
    )


@pytest.mark.sizes("d", [], full=[64, 256, 1024, 2048, 4096])
def test_profile_against_its_eigenproblems_by_width(d: int) -> None:
    hidden, targets = states(500, d, layers=8)
    gram = information.gram_matrix(hidden[0])
    ratio(
        "profile of 8 layers",
        "its eigenvalues, one matrix after the other",
        lambda: information.predictive_information(hidden, targets),
        lambda: [torch.linalg.eigvalsh(gram) for _ in range(17)],
        n=500,
        d=d,
        rounds=3,
        memory=peak_memory(profile, 500, d, 8),
    )


def test_samples_against_one_at_a_time() -> None:
    """Samples of one pool share its inner products and kernel values."""
    hidden, targets = states(500, layers=8)
    samples = [torch.randperm(500)[:200] for _ in range(20)]
    ratio(
        "20 samples of 200 of 500, 8 layers",
        "one sample at a time",
        lambda: information.predictive_information(hidden, targets, samples=samples),
        lambda: [information.predictive_information(hidden[:, s], targets[s]) for s in samples],
        n=200,
        rounds=3,
    )


def test_permutation_null_against_its_eigenproblems() -> None:
    """The floor is one symmetric eigenproblem for each shuffle and layer, here one after the other.

    Below 1, threads pay; 200 shuffles of 31 layers, what the audit asks for, take ten times as long.
    """
    hidden, targets = states(200)
    shuffles = 20
    gram = information.gram_matrix(hidden[0])
    ratio(
        f"permutation null, {LAYERS} layers, {shuffles} shuffles",
        "its eigenvalues, one matrix after the other",
        lambda: information.permutation_null(hidden, targets, shuffles),
        lambda: [torch.linalg.eigvalsh(gram) for _ in range(shuffles * LAYERS)],
        n=200,
        rounds=3,
    )


def unbiased(n: int, d: int = WIDTH, layers: int = LAYERS) -> Callable[[], object]:
    hidden, targets = states(n, d, layers)
    information.unbiased_information(hidden[:1, :10], targets[:10])
    return lambda: information.unbiased_information(hidden, targets, products=torch.float32)


@pytest.mark.sizes("n", [500, 2000], full=[4000])
def test_unbiased_profile_against_matrix_products(n: int) -> None:
    """The products of all layers' states with themselves, in the same precision, are the floor."""
    hidden, targets = states(n)
    ratio(
        f"unbiased profile of {LAYERS} layers, float32",
        "one matrix product a layer, float32",
        lambda: information.unbiased_information(hidden, targets, products=torch.float32),
        lambda: [layer @ layer.mT for layer in hidden],
        n=n,
        memory=peak_memory(unbiased, n),
    )


def test_unbiased_profile_against_the_estimate_and_its_shuffles() -> None:
    """What the paper's estimate and 200 shuffles take, timed on 2 shuffles."""
    hidden, targets = states(500)
    ours = unbiased(500)

    def seconds(call: Callable[[], object]) -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    fast = statistics.median(seconds(ours) for _ in range(5))
    once = seconds(lambda: information.predictive_information(hidden, targets))
    two = seconds(lambda: information.permutation_null(hidden, targets, 2))
    what = f"unbiased profile of {LAYERS} layers with its null, float32"
    add(what, "the paper's with 200 shuffles (from 2)", fast, once + 100 * two, n=500)


@pytest.mark.sizes("n", [10000], full=[50000])
def test_unbiased_information_of_many_samples(n: int) -> None:
    """No N x N matrix: one of 50,000 samples would take 20 GB."""
    memory, seconds = alone(unbiased, n, WIDTH, 1)
    add("unbiased, one layer, float32", "none", seconds, np.nan, n=n, memory=memory)


@pytest.mark.sizes("n", [1000], full=[2000, 4000])
def test_unbiased_information_against_the_eigenvalues(n: int) -> None:
    """Of one layer: what the paper's estimate takes, whose time grows with the cube of n."""
    hidden, targets = states(n, layers=1)
    ratio(
        "unbiased, one layer, float32",
        "the paper's, by eigenvalues",
        lambda: information.unbiased_information(hidden, targets, products=torch.float32),
        lambda: information.predictive_information(hidden, targets),
        n=n,
        rounds=1,
    )


def shaped(name: str) -> models.LoadedModel:
    """The embedded model, or random weights in the shape of another."""
    if name == models.EMBEDDED:
        return models.load(name, device="cpu")
    shapes = {
        "GPT-2 Medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
        "Qwen2.5-0.5B": Qwen2Config(
            hidden_size=896,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            intermediate_size=4864,
            vocab_size=151936,
            tie_word_embeddings=True,
        ),
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shapes[name], dtype=torch.float32)
    return models.assemble(name, model, models.byte_tokenizer())


@pytest.mark.sizes("name", [models.EMBEDDED], full=["GPT-2 Medium", "Qwen2.5-0.5B"])
def test_collect_against_a_bare_forward_pass(name: str) -> None:
    """Against the model's body alone on the same batches; neither applies the head."""
    loaded = shaped(name)
    drawn = tasks.load("synthetic_arithmetic", "id", 32)
    examples = sorted(drawn, key=lambda example: len(encode(loaded, example)[0]))
    batches = [pad([encode(loaded, e)[0] for e in examples[start : start + 16]], loaded) for start in (0, 16)]

    def bare() -> None:
        with torch.inference_mode():
            for ids, mask in batches:
                loaded.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)

    ratio(
        f"collect, {len(loaded.blocks)} blocks of {name}",
        "bare forward pass of the same batches",
        lambda: collect(loaded, examples, 16, progress=False),
        bare,
        n=len(examples),
        d=loaded.width,
        rounds=3,
    )


@pytest.mark.sizes("n", [1000], full=[])
def test_profile_against_the_forward_pass(n: int) -> None:
    """What a user waits for: the estimator's part beside the model's, which is timed on 32 prompts."""
    loaded = models.load(models.EMBEDDED, device="cpu")
    examples = tasks.load("synthetic_arithmetic", "id", 32)
    started = time.perf_counter()
    collect(loaded, examples, 16, progress=False)
    forward = (time.perf_counter() - started) * n / len(examples)
    ours = profile(n)
    started = time.perf_counter()
    ours()
    seconds = time.perf_counter() - started
    reference = "the forward pass of as many prompts (from 32)"
    add(f"profile of {LAYERS} layers", reference, seconds, forward, n=n)
