"""Other measures of the same thing: do they peak where predictive information peaks?

``measure`` takes the pools of one checkpoint and gives rows of the table of measurements, ``validation`` the same
estimators on distributions whose mutual information is known; the rest turns tables into sentences and figures.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from scipy import stats
from torch import Tensor

from ridge_utils import formatting, inference, information, results, statistics
from ridge_utils.audit import estimators, probes
from ridge_utils.errors import InputError
from ridge_utils.inference import CONFIDENCE, Effect, effect_rows, half_sample_effect, paired_effect

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
    #: how figures and tables call it
    label: str
    #: whether it is in nats, and so has a truth to be compared with
    in_nats: bool
    #: its colour in every figure
    colour: str


#: The measures, by the names that effects have in the column ``variant``.
MEASURES = {
    "matrix": Measure("predictive_information", "", "matrix-based I(Z; Y)", True, "#444444"),
    "linear": Measure("v_information", "", "linear probe", True, "#0072b2"),
    "mlp": Measure("v_information", "mlp", "MLP probe", True, "#56b4e9"),
    "embedding": Measure("v_information", "embedding", "embedding probe", True, "#0072b2"),
    "info_nce": Measure("info_nce", "", "InfoNCE", True, "#009e73"),
    "ksg": Measure("ksg_information", "", "nearest neighbours", True, "#e69f00"),
    "distance": Measure("distance_correlation", "", "distance correlation", False, "#d55e00"),
    "alignment": Measure("cka", "", "kernel alignment (CKA)", False, "#cc79a7"),
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

    Where the vocabulary is closed (:func:`ridge_utils.audit.probes.vocabulary`) the probes are ``linear`` and ``mlp``, the
    rarer targets left out, and the neighbours' estimator is Ross's. Where it is open the probe is ``embedding``, the
    neighbours' estimator Kraskov's with the target's embedding reduced as the state is, and the critic of InfoNCE is
    evaluated on targets that it was not trained on. Where it is poor, none of them applies.

    Args:
        states: shape (states, N, d).
        targets: embeddings of the targets, shape (N, e).
        labels: which target each is, shape (N,), int64.
        seed: of folds, starts and batches.
        jobs: processes for the probes, -1 for as many as there are processors.

    Raises:
        InputError: shapes that do not fit.
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
        found = made[place * len(states) : (place + 1) * len(states)]
        terms[family] = Terms(torch.stack([probe.gain for probe in found]), kept)
        correct[family] = Terms(torch.stack([probe.correct for probe in found]).double(), kept)
        null[family] = found[0].null_entropy
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
    """Every measure over depth, how its profile agrees with that of predictive information, and whether it falls.

    All is taken on the ID and OOD examples together. What is averaged over examples is also given for the ID and for
    the OOD examples among them, read by the same probes.

    Args:
        pools: representations by split, ``all`` among them.
        context: model, task, source, step and train_seed of the rows.
        spacing: measure every so many layers; the ridge layer, the last block and the final norm always.
        halves: random halves of the examples for intervals, at least 20.
        seed: of folds, starts and batches.
        jobs: processes for the probes.

    Returns:
        Table of measurements. Per layer, the quantities of :data:`MEASURES`, with ``…_low`` and ``…_high`` where there
        is an interval, and ``probe_accuracy``. Per checkpoint: ``null_entropy`` (nats) of each probe,
        ``class_share`` (of the examples whose target is frequent enough to be a class), and the effects
        ``v_information_fall`` (within examples, from the ridge layer to the last block, nats), ``rank_correlation``
        (over layers, with predictive information), ``peak_difference`` (layer of the largest value less that of
        predictive information) and ``peak_fall`` (of the measure from its own largest layer to the last block), the
        last three with the measure's name in ``variant``.

    Raises:
        InputError: a spacing below 1, too few halves, or as :func:`read`.
    """
    if spacing < 1:
        raise InputError(f"spacing must be at least 1, but is {spacing}.")
    pool = pools["all"]
    blocks = len(pool.hidden) - 1
    sites = results.sites(blocks)
    profile = information.predictive_information(pool.states, pool.targets)
    ridge = int(information.ridge_layer(profile[:-1]))
    chosen = sorted({*range(0, blocks + 1, spacing), ridge, blocks, blocks + 1})
    places = [sites[i] for i in chosen]
    states = pool.states[chosen]
    found = read(states, pool.targets, pool.target_ids, seed, jobs)

    everything = {**context, "split": "all", "sample_seed": None, "n": len(pool)}
    end = [(blocks, "block")]
    share = probes.frequent(pool.target_ids).double().mean().item()
    tables = [
        results.measurements(profile.tolist(), sites, "predictive_information", **everything),
        results.measurements([share], end, "class_share", **everything),
    ]
    whole = torch.arange(len(pool))
    profiles = {**_kernels(states, pool.targets), **{name: found.terms[name].mean for name in found.terms}}
    samples = [statistics.subsample(len(pool), len(pool) // 2, number) for number in range(halves)]
    rests = [whole[~torch.isin(whole, half)] for half in samples]
    over = {
        name: torch.stack([torch.stack([value(i) for i in part]) for part in (samples, rests)])
        for name, value in profiles.items()
    }
    for name, value in profiles.items():
        own = everything | {
            "variant": MEASURES[name].variant,
            "n": len(found.terms[name].kept) if name in found.terms else len(pool),
        }
        # The interval of the paper's estimate lies around the very values that are stored above.
        values = profile[chosen] if name == "matrix" else value(whole)
        if name != "matrix":
            tables.append(results.measurements(values.tolist(), places, MEASURES[name].quantity, **own))
        reach = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * over[name][0].std(0)
        for suffix, edge in (("_low", values - reach), ("_high", values + reach)):
            tables.append(results.measurements(edge.tolist(), places, MEASURES[name].quantity + suffix, **own))
    for family, right in found.correct.items():
        own = everything | {"variant": MEASURES[family].variant, "n": len(right.kept)}
        gains = found.terms[family]
        tables.append(results.measurements([found.null_entropy[family]], end, "null_entropy", **own))
        tables.append(results.measurements(right.mean(whole).tolist(), places, "probe_accuracy", **own))
        tables += _by_split(pools, {"v_information": gains, "probe_accuracy": right}, places, own)
        fall = paired_effect(gains.each[chosen.index(blocks)].tolist(), gains.each[chosen.index(ridge)].tolist(), seed)
        tables.append(effect_rows(fall, end[0], "v_information_fall", **own))
    layers = torch.tensor(chosen[:-1])
    for name, both in over.items():
        own = everything | {"variant": name}
        for quantity, effect in _agreement(both[..., :-1], over["matrix"][..., :-1], layers).items():
            if name != "matrix" or quantity == "peak_fall":
                tables.append(effect_rows(effect, end[0], quantity, **own))
    return pd.concat(tables, ignore_index=True)


def spread(steps: Sequence[int], count: int) -> list[int]:
    """So many of the checkpoints' steps, evenly spread, the first and the last among them; 0 for all.

    Args:
        steps: of the checkpoints, ascending.
        count: how many.
    """
    if not 0 < count < len(steps):
        return list(steps)
    return [steps[int(place)] for place in np.linspace(0, len(steps) - 1, count).round()]


def validation(n: int = 500, seed: int = 0, jobs: int = -1) -> pd.DataFrame:
    """Every measure on distributions whose mutual information is known, reduced and fitted as states are.

    Args:
        n: samples of each distribution.
        seed: of the draws, and of folds, starts and batches.
        jobs: processes.

    Returns:
        One row per distribution and measure that fits it, with ``measure`` (its name in :data:`MEASURES`), ``family``,
        ``truth`` (nats) and ``estimate``.
    """
    known = known_distributions(n, seed)
    return pd.concat(Parallel(n_jobs=jobs)(delayed(_validated)(each, seed) for each in known), ignore_index=True)


def known_distributions(n: int, seed: int = 0) -> list[estimators.Known]:
    """The distributions of the validation: Gaussians, a channel, and clusters in few and in many dimensions.

    Args:
        n: samples of each.
        seed: of the draws.
    """
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
    z, y = _unit(states), _unit(targets)
    grams, gram = torch.stack([information.gram_matrix(one) for one in z]), information.gram_matrix(y)
    far, far_y = torch.stack([torch.cdist(one, one) for one in z]), torch.cdist(y, y)
    near, near_y = z @ z.mT, y @ y.mT

    def matrix(index: Tensor) -> Tensor:
        a, b = (len(gram) / len(index) * _among(g, index) for g in (grams, gram))
        return information.entropy(a) + information.entropy(b) - information.joint_entropy(a, b)

    def correlation(a: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda index: estimators.bias_corrected_correlation(_among(a, index), _among(b, index))

    return {"matrix": matrix, "distance": correlation(far, far_y), "alignment": correlation(near, near_y)}


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.double(), dim=-1)


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


def _agreement(both: Tensor, matrix: Tensor, layers: Tensor) -> dict[str, Effect]:
    """How a profile agrees with that of predictive information, and how it falls, over halves and their complements.

    Args:
        both: profiles on the halves and on their complements, shape (2, halves, layers).
        matrix: those of predictive information.
        layers: their numbers, the last block last.
    """
    first, second = both
    peaks = first.argmax(1)
    beyond = second[torch.arange(len(second)), peaks] - second[:, -1]
    out = {
        "peak_difference": half_sample_effect((layers[peaks] - layers[matrix[0].argmax(1)]).tolist()),
        "peak_fall": half_sample_effect(beyond.tolist()),
    }
    # A profile that is the same at every layer has no ranks.
    if bool((first.std(1) > 0).all()) and bool((matrix[0].std(1) > 0).all()):
        ranks = [float(stats.spearmanr(a, b).statistic) for a, b in zip(first, matrix[0], strict=True)]
        effect = half_sample_effect(ranks)
        out["rank_correlation"] = replace(effect, low=max(effect.low, -1.0), high=min(effect.high, 1.0))
    return out


def _validated(known: estimators.Known, seed: int) -> pd.DataFrame:
    """Every measure of one distribution; several distributions are in work at once, so each has one process."""
    labels = torch.arange(len(known.x)) if known.labels is None else known.labels
    found = read(known.x.unsqueeze(0), known.y, labels, seed, jobs=1)
    whole = torch.arange(len(known.x))
    values = {name: value(whole) for name, value in _kernels(known.x.unsqueeze(0), known.y).items()}
    values |= {name: terms.mean(whole) for name, terms in found.terms.items()}
    row = {"family": known.family, "truth": known.information}
    return pd.DataFrame([{"measure": name, **row, "estimate": value.item()} for name, value in values.items()])


def validation_figure(table: pd.DataFrame) -> Figure:
    """Estimate against truth, a panel per measure, a colour per family of distributions.

    Args:
        table: what :func:`validation` gave.
    """
    names = [name for name in MEASURES if name in set(table["measure"])]
    figure, axes = plt.subplots(2, math.ceil(len(names) / 2), figsize=(11, 6.2), squeeze=False)
    families = dict(zip(table["family"].unique(), mpl.colormaps["viridis"](np.linspace(0, 0.9, 6)), strict=False))
    highest = table["truth"].max()
    for ax, name in zip(axes.flat, names, strict=False):
        rows = table[table["measure"] == name]
        if MEASURES[name].in_nats:
            ax.plot([0, highest], [0, highest], color="#999999", lw=0.8)
        for family, colour in families.items():
            own = rows[rows["family"] == family].sort_values("truth")
            ax.plot(own["truth"], own["estimate"], "o-", color=colour, ms=4, lw=1, label=family)
        ax.set_title(MEASURES[name].label, fontsize=10)
        ax.set_ylabel("nats" if MEASURES[name].in_nats else "no unit")
        ax.set_xlabel("true information (nats)")
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def validation_table(table: pd.DataFrame) -> Styler:
    """How far each measure is from the truth, and whether it keeps the order of the distributions.

    Args:
        table: what :func:`validation` gave.
    """
    lines = []
    for name, rows in _by_measure(table):
        errors = rows["estimate"] - rows["truth"]
        nats = MEASURES[name].in_nats
        lines.append(
            {
                "measure": MEASURES[name].label,
                "distributions": len(rows),
                "mean error": f"{errors.mean():+.2f}" if nats else "",
                "mean absolute error": f"{errors.abs().mean():.2f}" if nats else "",
                "where there is nothing": f"{rows[rows['truth'] < _NOTHING]['estimate'].abs().max():.3f}",
                "rank correlation with the truth": formatting.number(_ranks(rows), 2),
                "the lowest within a family": formatting.number(_lowest_ranks(rows), 2),
            }
        )
    caption = "Measures on distributions with known information, in nats; nothing there: largest estimate in size"
    return formatting.styled(pd.DataFrame(lines), caption)


def validation_headline(table: pd.DataFrame) -> str:
    """Which measures in nats are near the truth, and which keep the order, in a few sentences (Markdown).

    Args:
        table: what :func:`validation` gave.
    """
    errors = {
        name: (rows["estimate"] - rows["truth"]).abs().mean()
        for name, rows in _by_measure(table)
        if MEASURES[name].in_nats
    }
    order = sorted(errors, key=errors.__getitem__)
    nats = ", ".join(f"{MEASURES[name].label} {errors[name]:.2f}" for name in order)
    matrix = table[table["measure"] == "matrix"]
    low, high = (matrix["estimate"] / matrix["truth"])[matrix["truth"] > 0.4].quantile([0, 1])
    nothing = matrix[matrix["truth"] < _NOTHING]
    worst = nothing.loc[nothing["estimate"].idxmax()]
    return (
        f"The mean absolute errors in nats are: {nats}. Where there are 0.4 nats or more, the matrix-based estimate is "
        f"between {low:.2f} and {high:.2f} of the truth, depending on the distribution; where there is nothing, it is "
        f"up to {worst['estimate']:.2f} ({worst['family']}). Within a family it follows the truth (lowest rank "
        f"correlation {_lowest_ranks(matrix):.2f}), over all families less so ({_ranks(matrix):.2f})."
    )


def profiles_figure(tables: Mapping[str, pd.DataFrame], ends: bool = False) -> Figure:
    """Every measure over layers, ID and OOD together: in nats (left) and as a share of its largest value (right).

    Args:
        tables: tables of measurements by the title of their rows; each has a row for every checkpoint.
        ends: the first and the last checkpoint alone.
    """
    shown = []
    for title, table in tables.items():
        steps = sorted(int(step) for step in table["step"].unique())
        shown += [(title, table, step) for step in (sorted({steps[0], steps[-1]}) if ends else steps)]
    figure = plt.figure(figsize=(11, 3.6 * len(shown)))
    labels: dict[str, Any] = {}
    for part, (title, table, step) in zip(np.atleast_1d(figure.subfigures(len(shown), 1)), shown, strict=True):
        nats, shares = part.subplots(1, 2)
        now = table[(table["step"] == step) & (table["split"] == "all")]
        for name, measure in MEASURES.items():
            profile, norm = _profile(now, name), _after_norm(now, name)
            if not len(profile):
                continue
            if measure.in_nats:
                _draw(nats, profile, norm, measure)
                _draw_interval(nats, profile, measure)
            # What is not told from 0 anywhere has no shape.
            top = profile.loc[profile["value"].idxmax()]
            if top["low"] > 0:
                _draw(shares, profile / top["value"], norm / top["value"], measure)
        for ax, unit in ((nats, "nats"), (shares, "share of its largest value")):
            ax.axvline(_profile(now, "matrix")["value"].idxmax(), color="#999999", lw=0.8, ls=":")
            ax.set_xlabel("layer (0: embedding; ◆: after the final norm)")
            ax.set_ylabel(unit)
            labels |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        nats.set_ylim(bottom=0, auto=True)
        shares.set_ylim(-0.1, 1.1)
        part.suptitle(f"{title}, {formatting.when(step)}", fontsize=10)
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def agreement_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Rank correlation of each measure with predictive information over layers, with its interval.

    Args:
        tables: tables of measurements by the title of their panel; checkpoints side by side, lighter is later.
    """
    figure, axes = plt.subplots(len(tables), 1, figsize=(9, 3.4 * len(tables)), squeeze=False)
    for ax, (title, table) in zip(axes[:, 0], tables.items(), strict=True):
        rows = _over_seeds(table, "rank_correlation")
        names = [name for name in MEASURES if name in set(rows["variant"])]
        steps = sorted(rows["step"].unique())
        for number, step in enumerate(steps):
            own = rows[rows["step"] == step].set_index("variant").reindex(names)
            place = np.arange(len(names)) + 0.6 * ((number + 0.5) / len(steps) - 0.5)
            colour = str(0.65 * number / max(1, len(steps) - 1))
            bars = (own["estimate"] - own["low"], own["high"] - own["estimate"])
            ax.errorbar(place, own["estimate"], yerr=bars, fmt="o", ms=4, color=colour, label=formatting.when(step))
        ax.axhline(0, color="#999999", lw=0.8)
        ax.set_xticks(range(len(names)), [MEASURES[name].label for name in names], rotation=15, fontsize=8)
        ax.set_ylim(-1.05, 1.05)
        ax.set_ylabel("rank correlation")
        ax.set_title(title, fontsize=10)
        if len(rows):
            ax.legend(fontsize=8)
    return figure


def falls(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How far the probes' readings fall from the ridge layer to the last block, training seeds taken together.

    Args:
        tables: tables of measurements, by what the reader calls them.

    Returns:
        The effects as rows, with ``run``, ``checkpoint`` and ``probe``, what the reader calls them.
    """
    found = inference.across_seeds(inference.gathered(tables, {"v_information_fall": "fall"}))
    labels = {MEASURES[name].variant: MEASURES[name].label for name in PROBES}
    return found.assign(checkpoint=found["step"].map(formatting.when), probe=found["variant"].map(labels))


def headline(table: pd.DataFrame) -> str:
    """Where the probes and predictive information are largest, and whether the probes fall after the ridge (Markdown).

    Args:
        table: what :func:`measure` gave for one or more checkpoints.

    Returns:
        A list, one line per checkpoint.
    """
    moved = _over_seeds(table, "v_information_fall").set_index(["step", "variant"])
    sentences = []
    for step in sorted(table["step"].unique()):
        now = table[(table["step"] == step) & (table["split"] == "all")]
        matrix = _profile(now, "matrix")["value"]
        blocks = int(matrix.index.max())
        parts = []
        for name in PROBES:
            profile = _profile(now, name)
            if not len(profile):
                continue
            values, variant = profile["value"], MEASURES[name].variant
            null = now[(now["quantity"] == "null_entropy") & (now["variant"] == variant)]["value"].mean()
            fall = moved.loc[(step, variant)]
            parts.append(
                f"the {MEASURES[name].label} reads most at layer {values.idxmax()} ({values.max():.2f} of {null:.2f} "
                f"nats), and from the ridge layer to the last block its reading {_moved(fall)}"
            )
        where = f"largest at layer {matrix.idxmax()} of {blocks}" if matrix.idxmax() < blocks else "highest at the end"
        parts.insert(0, f"{formatting.when(step)}, predictive information is {where}")
        sentences.append("- " + formatting.sentence("; ".join(parts)))
    return "\n".join(sentences)


def norm_headline(table: pd.DataFrame) -> str:
    """What the final norm does to predictive information and to what the probes read (Markdown).

    Args:
        table: what :func:`measure` gave for one or more checkpoints.
    """
    parts = []
    for name in ("matrix", *PROBES):
        changes = []
        for step in sorted(table["step"].unique()):
            now = table[(table["step"] == step) & (table["split"] == "all")]
            profile = _profile(now, name)
            if len(profile):
                changes.append(_after_norm(now, name) - profile["value"].iloc[-1])
        if changes:
            low, high = (round(edge, 3) + 0.0 for edge in (min(changes), max(changes)))
            span = f"{low:+.3f}" if low == high else f"{low:+.3f} to {high:+.3f}"
            parts.append(f"{MEASURES[name].label} by {span}")
    return f"From the last block to the state after the final norm the values change, in nats: {', '.join(parts)}."


def agreement_headline(table: pd.DataFrame) -> str:
    """How many of the other measures have the shape of predictive information, checkpoint by checkpoint (Markdown).

    Args:
        table: what :func:`measure` gave for one or more checkpoints.
    """
    ranks, ends = _over_seeds(table, "rank_correlation"), _over_seeds(table, "peak_fall")
    sentences = []
    for step in sorted(table["step"].unique()):
        own = ranks[ranks["step"] == step]
        falling = ends[(ends["step"] == step) & (ends["variant"] != "matrix")]
        sure = [MEASURES[row.variant].label for row in falling.itertuples() if row.low > 0]
        which = f"{len(sure)} ({', '.join(sure)})" if sure else "none"
        if not len(falling):
            continue
        if len(own):
            low, high = own.loc[own["estimate"].idxmin()], own.loc[own["estimate"].idxmax()]
            over = (
                f"over layers, the rank correlation of the other measures with predictive information lies between "
                f"{low['estimate']:.2f} ({MEASURES[low['variant']].label}) and {high['estimate']:.2f} "
                f"({MEASURES[high['variant']].label}), and "
            )
        else:
            over = "a profile has no shape to compare, and "
        sentences.append(
            formatting.sentence(
                f"{formatting.when(step)}, {over}of {len(falling)} other measures {which} fall from their largest layer to "
                "the last block beyond the interval"
            )
        )
    return " ".join(sentences)


def applicability(table: pd.DataFrame) -> str:
    """Whether the targets can be probed as classes, and what stands in the classifiers' place if not (Markdown).

    Args:
        table: what :func:`measure` gave.
    """
    shares = table[table["quantity"] == "class_share"]["value"]
    share = f"{100 * shares.mean():.0f} % of the examples have a target that {probes.RAREST} or more of them share"
    kinds = set(table[table["quantity"] == "v_information"]["variant"])
    if not kinds:
        return (
            f"**Probes: not applicable.** The targets are neither 2 or more classes of {probes.RAREST} examples or "
            f"more nor {probes.LEAST_TARGETS} or more different ones, so there is too little to fit on."
        )
    if "embedding" in kinds:
        return (
            f"**Probes of classes: not applicable.** Only {share}: a classifier would have too little to learn from. "
            "In its place stands the probe of the target's embedding, which ranks targets that it was not fitted on."
        )
    rest = " The others are left out of the probes and of the neighbours' estimator." if shares.mean() < 1 else ""
    return f"**Probes of classes** apply: {share}.{rest}"


def agreement_table(table: pd.DataFrame) -> Styler:
    """Where each measure is largest, how its profile agrees with predictive information, and how far it falls.

    Args:
        table: what :func:`measure` gave for one or more checkpoints.
    """
    found = {
        quantity: _over_seeds(table, quantity).set_index(["step", "variant"])
        for quantity in ("peak_difference", "rank_correlation", "peak_fall")
    }
    lines = []
    for step in sorted(table["step"].unique()):
        now = table[(table["step"] == step) & (table["split"] == "all")]
        for name, measure in MEASURES.items():
            profile, key = _profile(now, name), (step, name)
            line = {"checkpoint": formatting.when(step), "measure": measure.label}
            if not len(profile):
                lines.append(line | {"largest at layer": "not applicable"})
                continue
            line |= {
                "largest at layer": f"{profile['value'].idxmax()} of {profile.index.max()}",
                "its value": f"{profile['value'].max():.3f}",
                "at the last block": f"{profile['value'].iloc[-1]:.3f}",
                "after the final norm": f"{_after_norm(now, name):.3f}",
            }
            for quantity, title in (
                ("peak_difference", "layers from I's largest"),
                ("rank_correlation", "rank correlation with I"),
                ("peak_fall", "fall to the last block"),
            ):
                effect = found[quantity]
                line[title] = _interval(effect.loc[key]) if key in effect.index else ""
            lines.append(line)
    caption = "Measures over depth, ID and OOD together; intervals cover 95 %, over random halves of the examples"
    return formatting.styled(pd.DataFrame(lines).fillna(""), caption)


#: Less true information than this, in nats, is called nothing.
_NOTHING = 1e-3


def _by_measure(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    rows = [(name, table[table["measure"] == name]) for name in MEASURES]
    return [(name, own) for name, own in rows if len(own)]


def _ranks(rows: pd.DataFrame) -> float:
    if rows["estimate"].nunique() < 2:
        return math.nan  # a measure that finds nothing anywhere has no order
    return float(stats.spearmanr(rows["truth"], rows["estimate"]).statistic)


def _lowest_ranks(rows: pd.DataFrame) -> float:
    return float(np.min([_ranks(own) for _, own in rows.groupby("family")]))


def _rows(now: pd.DataFrame, name: str, suffix: str = "") -> pd.DataFrame:
    measure = MEASURES[name]
    return now[(now["quantity"] == measure.quantity + suffix) & (now["variant"] == measure.variant)]


def _profile(now: pd.DataFrame, name: str) -> pd.DataFrame:
    """A measure by layer up to the last block, ``value``, ``low`` and ``high``, training seeds taken together."""
    columns = {}
    for suffix, column, how in (("", "value", "mean"), ("_low", "low", "min"), ("_high", "high", "max")):
        rows = _rows(now, name, suffix)
        columns[column] = rows[rows["site"] != "final_norm"].groupby("layer")["value"].agg(how)
    found = pd.DataFrame(columns).sort_index()
    return found.set_index(found.index.astype(int))


def _after_norm(now: pd.DataFrame, name: str) -> float:
    rows = _rows(now, name)
    return float(rows[rows["site"] == "final_norm"]["value"].mean())


def _draw(ax: Axes, profile: pd.DataFrame, norm: float, measure: Measure) -> None:
    ax.plot(profile.index, profile["value"], color=measure.colour, label=measure.label)
    ax.plot(profile.index.max() + 1, norm, "D", color=measure.colour, ms=4)


def _draw_interval(ax: Axes, profile: pd.DataFrame, measure: Measure) -> None:
    known = profile.dropna()
    if len(known) == len(profile):
        ax.fill_between(known.index, known["low"], known["high"], color=measure.colour, alpha=0.15, lw=0)
    else:  # a curve over more layers than have an interval would leave a band between them
        ax.vlines(known.index, known["low"], known["high"], color=measure.colour, lw=2, alpha=0.5)


def _over_seeds(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    return inference.across_seeds(inference.effects(table, quantity))


def _moved(fall: "pd.Series[float]") -> str:
    if fall["low"] == fall["high"] == 0:
        return "cannot fall, for the ridge layer is the last block"
    if fall["low"] <= 0 <= fall["high"]:
        return f"does not fall beyond its error (fall {_interval(fall)} nats)"
    if fall["estimate"] > 0:
        return f"falls by {_interval(fall)} nats, before correction"
    return f"rises (fall {_interval(fall)} nats, before correction)"


def _interval(effect: "pd.Series[float]") -> str:
    estimate, low, high = (round(effect[name], 2) + 0.0 for name in ("estimate", "low", "high"))
    return f"{estimate:.2f} ({low:.2f} to {high:.2f})"
