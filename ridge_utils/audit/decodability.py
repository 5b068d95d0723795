"""Other measures of the same thing: do they peak where predictive information peaks?

:func:`measure` takes the pools of one checkpoint and gives rows of the table of measurements, :func:`validation` puts
the same estimators to distributions whose mutual information is known.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from scipy import stats
from torch import Tensor
from torch.nn.functional import normalize

from ridge_utils import information, results, statistics
from ridge_utils.audit import estimators, probes
from ridge_utils.errors import at_least
from ridge_utils.inference import CONFIDENCE, effect_rows, half_sample_effect, paired_effect

if TYPE_CHECKING:
    from ridge_utils.representations import Representations

#: Leading principal components that the neighbours are sought in, and that the critic of InfoNCE reads.
NEIGHBOUR_COMPONENTS, CRITIC_COMPONENTS = 5, 50
#: Steps of a critic's training, at most.
CRITIC_STEPS = 300


@dataclass(frozen=True)
class Measure:
    """One measure of what a state tells about the target."""

    #: its name in the column ``quantity``
    quantity: str
    #: its name in the column ``variant``
    variant: str
    #: what figures and tables call it
    label: str
    #: whether it is in nats, and so has a truth to be compared with
    in_nats: bool = True


#: The measures, by the names that effects have in the column ``variant``.
MEASURES = {
    "matrix": Measure("predictive_information", "", "matrix-based I(Z; Y)"),
    "linear": Measure("v_information", "", "linear probe"),
    "mlp": Measure("v_information", "mlp", "MLP probe"),
    "embedding": Measure("v_information", "embedding", "embedding probe"),
    "info_nce": Measure("info_nce", "", "InfoNCE"),
    "ksg": Measure("ksg_information", "", "nearest neighbours"),
    "distance": Measure("distance_correlation", "", "distance correlation", False),
    "alignment": Measure("cka", "", "kernel alignment (CKA)", False),
}
#: The measures that are probes; which of them apply depends on the targets.
PROBES = ("linear", "mlp", "embedding")


@dataclass(frozen=True)
class Terms:
    """A measure of several states as terms per example, whose mean is its value."""

    #: shape (states, K), nats
    each: Tensor
    #: which of the N examples they belong to, shape (K,), int64
    kept: Tensor

    def mean(self, index: Tensor) -> Tensor:
        """Mean over those of the examples ``index`` that have a term, shape (states,)."""
        return self.each[:, torch.isin(self.kept, index)].mean(1)


@dataclass(frozen=True)
class Readings:
    """What the estimators that work example by example say of several states."""

    #: by the names of :data:`MEASURES`
    terms: dict[str, Terms]
    #: of the probes among them, which examples were read rightly, shape (states, K), bool
    correct: dict[str, Terms]
    #: of the probes among them, H_V(Y), nats
    null_entropy: dict[str, float]


def read(states: Tensor, targets: Tensor, labels: Tensor, seed: int = 0, jobs: int = -1) -> Readings:
    """Apply the probes that fit the targets, InfoNCE and the neighbours' estimator to several states.

    Where the vocabulary is closed (:func:`~ridge_utils.audit.probes.vocabulary`) the probes are ``linear`` and ``mlp``,
    the rarer targets left out, and the neighbours' estimator is Ross's. Where it is open the probe is ``embedding``,
    the neighbours' estimator Kraskov's with the target's embedding reduced as the state is, and the critic of InfoNCE
    is evaluated on targets that it was not trained on. Where it is poor, none of them applies.

    Args:
        states: shape (states, N, d).
        targets: embeddings of the targets, shape (N, e).
        labels: which target each is, shape (N,), int64.
        jobs: processes for the probes, -1 for as many as there are processors.
    """
    vocabulary = probes.vocabulary(labels)
    if vocabulary == "poor":
        return Readings({}, {}, {})
    closed = vocabulary == "closed"
    every = torch.arange(len(labels))
    kept = every[probes.frequent(labels)] if closed else every
    families: Sequence[str] = PROBES[:2] if closed else PROBES[2:]
    made = Parallel(n_jobs=jobs)(
        delayed(_probe)(family, z[kept], targets[kept], labels[kept], seed) for family in families for z in states
    )
    terms, correct, null = {}, {}, {}
    for place, family in enumerate(families):
        fitted = made[place * len(states) : (place + 1) * len(states)]
        terms[family] = Terms(torch.stack([probe.gain for probe in fitted]), kept)
        correct[family] = Terms(torch.stack([probe.correct for probe in fitted]).double(), kept)
        null[family] = fitted[0].null_entropy
    critics = torch.stack([estimators.principal_components(z, CRITIC_COMPONENTS) for z in states])
    reduced = estimators.principal_components(targets, CRITIC_COMPONENTS)
    bound = estimators.info_nce(critics, reduced, seed, None if closed else labels, CRITIC_STEPS)
    terms["info_nce"] = Terms(bound, every)
    terms["ksg"] = Terms(torch.stack([_neighbours(z[kept], targets[kept], labels[kept], closed) for z in states]), kept)
    return Readings(terms, correct, null)


def measure(
    pools: "Mapping[str, Representations]",
    context: Mapping[str, Any],
    *,
    spacing: int = 1,
    halves: int = 100,
    seed: int = 0,
    jobs: int = -1,
) -> pd.DataFrame:
    """Every measure over depth, and whether it falls.

    All is taken on the ID and OOD examples together, the pool ``all``. What is averaged over examples is also given for
    the ID and for the OOD examples among them, read by the same probes. Measured are every ``spacing`` layers, and
    always the ridge layer, the last block and the final norm; intervals are from ``halves`` random halves of the
    examples, at least 20.

    Returns:
        Table of measurements. Per layer, the quantities of :data:`MEASURES`, with ``…_low`` and ``…_high`` where there
        is an interval, and ``probe_accuracy``. Per checkpoint: ``null_entropy`` (nats) of each probe, and the effects
        ``v_information_fall`` (within examples, from the ridge layer to the last block, nats) and ``peak_fall`` (of a
        measure from its own largest layer to the last block), with the measure's name in ``variant``.
    """
    at_least(1, spacing=spacing)
    pool = pools["all"]
    blocks = len(pool.hidden) - 1
    sites = results.sites(blocks)
    profile = information.predictive_information(pool.states, pool.targets)
    ridge = int(information.ridge_layer(profile[:-1]))
    chosen = sorted({*range(0, blocks + 1, spacing), ridge, blocks, blocks + 1})
    places = [sites[i] for i in chosen]
    states = pool.states[chosen]
    readings = read(states, pool.targets, pool.target_ids, seed, jobs)

    everything = {**context, "split": "all", "sample_seed": None, "n": len(pool)}
    end = [(blocks, "block")]
    tables = [results.measurements(profile.tolist(), sites, "predictive_information", **everything)]
    whole = torch.arange(len(pool))
    profiles = {**_kernels(states, pool.targets), **{name: readings.terms[name].mean for name in readings.terms}}
    samples = [statistics.subsample(len(pool), len(pool) // 2, number) for number in range(halves)]
    complements = [whole[~torch.isin(whole, half)] for half in samples]
    over = {
        name: torch.stack([torch.stack([value(i) for i in part]) for part in (samples, complements)])
        for name, value in profiles.items()
    }
    for name, value in profiles.items():
        row = everything | {
            "variant": MEASURES[name].variant,
            "n": len(readings.terms[name].kept) if name in readings.terms else len(pool),
        }
        # The interval of the paper's estimate lies around the very values that are stored above.
        values = profile[chosen] if name == "matrix" else value(whole)
        if name != "matrix":
            tables.append(results.measurements(values.tolist(), places, MEASURES[name].quantity, **row))
        reach = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * over[name][0].std(0)
        for suffix, edge in (("_low", values - reach), ("_high", values + reach)):
            tables.append(results.measurements(edge.tolist(), places, MEASURES[name].quantity + suffix, **row))
    for family, right in readings.correct.items():
        row = everything | {"variant": MEASURES[family].variant, "n": len(right.kept)}
        gains = readings.terms[family]
        tables.append(results.measurements([readings.null_entropy[family]], end, "null_entropy", **row))
        tables.append(results.measurements(right.mean(whole).tolist(), places, "probe_accuracy", **row))
        tables += _by_split(pools, {"v_information": gains, "probe_accuracy": right}, places, row)
        fall = paired_effect(gains.each[chosen.index(blocks)].tolist(), gains.each[chosen.index(ridge)].tolist(), seed)
        tables.append(effect_rows(fall, end[0], "v_information_fall", **row))
    for name, both in over.items():
        # The largest layer of a half of the examples, on the other half.
        choosing, judging = both[..., :-1]
        falls = judging[torch.arange(halves), choosing.argmax(1)] - judging[:, -1]
        fall = half_sample_effect(falls.tolist())
        tables.append(effect_rows(fall, end[0], "peak_fall", **everything, variant=name))
    return pd.concat(tables, ignore_index=True)


def spread(steps: Sequence[int], count: int) -> list[int]:
    """``count`` of the checkpoints' steps, evenly spread, the first and the last among them; 0 for all."""
    if not 0 < count < len(steps):
        return list(steps)
    return [steps[int(place)] for place in np.linspace(0, len(steps) - 1, count).round()]


def validation(n: int = 500, seed: int = 0, jobs: int = -1) -> pd.DataFrame:
    """Every measure on ``n`` samples of distributions with known mutual information, reduced and fitted as states are.

    Returns:
        One row per distribution and measure that fits it, with ``measure`` (its name in :data:`MEASURES`), ``family``,
        ``truth`` (nats) and ``estimate``.
    """
    known = known_distributions(n, seed)
    return pd.concat(Parallel(n_jobs=jobs)(delayed(_validated)(each, seed) for each in known), ignore_index=True)


def known_distributions(n: int, seed: int = 0) -> list[estimators.Known]:
    """The distributions of the validation: Gaussians, a channel, and clusters in few and in many dimensions."""
    return [
        *(estimators.gaussian(n, d, truth, seed) for d in (1, 5, 20) for truth in (0.0, 1.0, 2.0)),
        *(estimators.channel(n, 10, error, seed) for error in (0.9, 0.4, 0.05)),
        *(estimators.clusters(n, 10, 10, apart, seed) for apart in (0.0, 2.5, 5.0)),
        *(estimators.clusters(n, 10, 500, apart, seed) for apart in (0.0, 2.5, 8.0)),
    ]


def _probe(family: str, states: Tensor, targets: Tensor, labels: Tensor, seed: int) -> probes.Probe:
    if family == "embedding":
        return probes.embedding(states, targets, labels, seed)
    return probes.classify(states, labels, "mlp" if family == "mlp" else "linear", seed)


def _neighbours(states: Tensor, targets: Tensor, labels: Tensor, closed: bool) -> Tensor:
    x = estimators.principal_components(states, NEIGHBOUR_COMPONENTS)
    if closed:
        return estimators.ksg_discrete(x, labels)
    return estimators.ksg(x, estimators.principal_components(targets, NEIGHBOUR_COMPONENTS))


def _kernels(states: Tensor, targets: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """The measures that compare all pairs of examples, as functions of which examples to take.

    All three see what the paper's estimator sees, vectors of length 1.
    """
    z, y = normalize(states.double(), dim=-1), normalize(targets.double(), dim=-1)
    grams, gram = torch.stack([information.gram_matrix(one) for one in z]), information.gram_matrix(y)
    far, far_y = torch.stack([torch.cdist(one, one) for one in z]), torch.cdist(y, y)
    near, near_y = z @ z.mT, y @ y.mT

    def matrix(index: Tensor) -> Tensor:
        a, b = (len(gram) / len(index) * _among(g, index) for g in (grams, gram))
        return information.entropy(a) + information.entropy(b) - information.joint_entropy(a, b)

    def correlation(a: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda index: estimators.bias_corrected_correlation(_among(a, index), _among(b, index))

    return {"matrix": matrix, "distance": correlation(far, far_y), "alignment": correlation(near, near_y)}


def _among(matrix: Tensor, index: Tensor) -> Tensor:
    return matrix[..., index[:, None], index]


def _by_split(
    pools: "Mapping[str, Representations]",
    measured: Mapping[str, Terms],
    places: Sequence[tuple[int, str]],
    context: Mapping[str, Any],
) -> list[pd.DataFrame]:
    """Means over the ID and over the OOD examples, which ``all`` holds one after the other."""
    tables, start = [], 0
    for split, pool in pools.items():
        if split == "all":
            continue
        index = torch.arange(start, start + len(pool))
        start += len(pool)
        for quantity, terms in measured.items():
            count = int(torch.isin(terms.kept, index).sum())
            row = {**context, "split": split, "n": count}
            if count:
                tables.append(results.measurements(terms.mean(index).tolist(), places, quantity, **row))
    return tables


def _validated(known: estimators.Known, seed: int) -> pd.DataFrame:
    """Every measure of one distribution; several distributions are in work at once, so each has one process."""
    labels = torch.arange(len(known.x)) if known.labels is None else known.labels
    readings = read(known.x.unsqueeze(0), known.y, labels, seed, jobs=1)
    whole = torch.arange(len(known.x))
    values = {name: value(whole) for name, value in _kernels(known.x.unsqueeze(0), known.y).items()}
    values |= {name: terms.mean(whole) for name, terms in readings.terms.items()}
    row = {"family": known.family, "truth": known.information}
    return pd.DataFrame([{"measure": name, **row, "estimate": value.item()} for name, value in values.items()])
