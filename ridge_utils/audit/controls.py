"""Is the ridge made by the estimator? Its null, its ceilings, the states' geometry, and the estimator in other ways.

Profiles are stored as means over sampling seeds with a row ``…_deviation`` beside each, their standard deviation, so
``sample_seed`` is empty; ``n`` is the number of examples per estimate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ridge_utils import inference, information, results, statistics
from ridge_utils.audit import geometry
from ridge_utils.errors import InputError
from ridge_utils.models import LoadedModel
from ridge_utils.representations import Representations

#: Shuffles behind the excess of one half of a pool, where many halves are averaged; a shuffle moves the null far less
#: than a draw of examples moves the estimate.
SHUFFLES_PER_HALF = 2
#: Shuffles behind the excess under a control on each sampling seed's draw; there are few of these.
SHUFFLES_PER_CONTROL = 10


_estimator = partial(information.Estimator, normalize=False)
_PLAIN = _estimator()


@dataclass(frozen=True)
class Control:
    """Another way to estimate predictive information."""

    #: the name in the column ``variant``; empty for the paper's own
    variant: str
    #: what figures and tables call it
    label: str
    #: what is done to the states of each layer before they are scaled to length 1
    states: Callable[[Tensor], Tensor] = torch.Tensor.double
    #: what is done to the targets before that
    targets: Callable[[Tensor], Tensor] = torch.Tensor.double
    #: of states and targets that were scaled to length 1 already; it would refuse a zero row otherwise
    estimator: information.Estimator = _PLAIN

    def profiles(self, states: Tensor, targets: Tensor, samples: Sequence[Tensor]) -> Tensor:
        """Information of every layer under this control, estimated from each of several samples, in nats.

        States, of shape (layers, N, d), and targets, of shape (N, e), are transformed within each sample, given by
        its examples' indices; the result has shape (samples, layers). A state that the transformation makes zero has no
        direction; it lies at distance 1 from those of length 1.
        """
        measure = partial(information.predictive_information, estimator=self.estimator)
        if self._leaves_vectors:
            return measure(*self._transformed(states, targets), samples=samples)
        return torch.stack([measure(*self._transformed(states[:, s], targets[s])) for s in samples])

    def excesses(
        self, states: Tensor, targets: Tensor, n_shuffles: int, seeds: Sequence[int], samples: Sequence[Tensor]
    ) -> Tensor:
        """:meth:`profiles` less the mean over shuffles of the targets, drawn with one seed for each sample."""
        measure = partial(information.excess_information, estimator=self.estimator)
        if self._leaves_vectors:
            return measure(*self._transformed(states, targets), n_shuffles, seeds, samples=samples)
        return torch.stack(
            [
                measure(*self._transformed(states[:, s], targets[s]), n_shuffles, seed)
                for s, seed in zip(samples, seeds, strict=True)
            ]
        )

    @property
    def _leaves_vectors(self) -> bool:
        """Whether a vector is the same in every sample, so that all samples can share its inner products."""
        return self.states is self.targets is torch.Tensor.double

    def _transformed(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return geometry.unit_length(self.states(states)), geometry.unit_length(self.targets(targets))


_THREE_DIMENSIONS = partial(geometry.without_largest_dimensions, k=3)
_THREE_COMPONENTS = partial(geometry.without_largest_components, k=3)

#: The paper's own estimator.
PAPER = Control("", "the paper's")

#: The other ways. Whitening and the removal of dimensions are those of :mod:`ridge_utils.audit.geometry`.
CONTROLS = (
    Control("centred", "Z centred", geometry.centred),
    Control("whitened", "Z whitened", geometry.whitened),
    Control("top_3_dimensions", "Z without its 3 largest dimensions", _THREE_DIMENSIONS),
    Control("top_3_components", "Z without its 3 largest components", _THREE_COMPONENTS),
    Control("targets_centred", "Y centred", targets=geometry.centred),
    Control("targets_whitened", "Y whitened", targets=geometry.whitened),
    Control("targets_top_3_dimensions", "Y without its 3 largest dimensions", targets=_THREE_DIMENSIONS),
    Control("both_centred", "Z and Y centred", geometry.centred, geometry.centred),
    *(
        Control(f"bandwidth_{s:g}", f"bandwidth {s:g}", estimator=_estimator(bandwidth=s))
        for s in (0.05, 0.1, 0.2, 0.5, 2.0, 5.0)
    ),
    Control("median_bandwidth", "bandwidth by the median rule", estimator=_estimator(bandwidth="median")),
    Control("laplacian", "laplacian kernel", estimator=_estimator("laplacian")),
    Control("polynomial", "polynomial kernel", estimator=_estimator("polynomial")),
    Control("linear", "linear kernel", estimator=_estimator("linear")),
    *(Control(f"order_{a:g}", f"order {a:g}", estimator=_estimator(alpha=a)) for a in (0.5, 1.5, 2.0)),
)

#: The paper's own with Y from the output embedding; measured where that is not the input embedding.
OUTPUT = Control("output_embedding", "Y from the output embedding")

_BY_VARIANT = {control.variant: control for control in (PAPER, *CONTROLS)}

#: The fall is cross-fitted for these; ``excess`` is the paper's own less its null.
FALLS = ("", "excess", "centred", "whitened", "median_bandwidth")

#: What figures and tables call each variant, in the order that they show it.
LABELS = {
    "": PAPER.label,
    "excess": "less its permutation null",
    **{control.variant: control.label for control in (*CONTROLS, OUTPUT)},
}


def check(pool: int, n_samples: int, sampling_seeds: Sequence[int], n_shuffles: int, n_halves: int) -> None:
    """Refuse numbers from which no band can be made, before anything long begins."""
    statistics.check_sampling(pool, n_samples, sampling_seeds)
    if len(sampling_seeds) < 2 or n_samples == pool:
        raise InputError(
            f"Bands need 2 sampling_seeds or more and n_samples below the pool of {pool} examples, but there are "
            f"{len(sampling_seeds)} and {n_samples}."
        )
    if n_shuffles < len(sampling_seeds):
        raise InputError(
            f"n_shuffles must be at least one for each sampling seed, {len(sampling_seeds)}, but is {n_shuffles}."
        )
    if n_halves < 20:
        raise InputError(f"n_halves must be at least 20, for a standard error, but is {n_halves}.")


def first(pools: Mapping[str, Representations], n: int) -> dict[str, Representations]:
    """The first ``n`` ID and OOD examples each, 4 or more, so that halves have 2, and both together; 0 for all."""
    parts = {split: pools[split] for split in ("id", "ood")}
    size = min(map(len, parts.values()))
    if n and not 4 <= n <= size:
        raise InputError(f"n_halved must be 0 or between 4 and the number of examples, {size}, but is {n}.")
    if n:
        parts = {split: pool.select(range(n)) for split, pool in parts.items()}
    return parts | {"all": Representations.join(list(parts.values()))}


def layers(
    pools: Mapping[str, Representations],
    context: Mapping[str, Any],
    *,
    n_samples: int,
    sampling_seeds: Sequence[int],
    n_shuffles: int,
) -> pd.DataFrame:
    """The paper's estimate over the layers, with its null, its ceilings, and the geometry of the states.

    Each sampling seed draws ``n_samples`` examples of a pool without replacement; the ``n_shuffles`` of a layer are
    shared out over the seeds.

    Returns:
        Table of measurements. In nats there are ``predictive_information``, ``null_information`` (mean over shuffles),
        ``null_information_high`` (95 % quantile of the shuffles of all sampling seeds), ``excess_information``,
        ``state_entropy``, and ``target_entropy``, which stands at the embedding; then ``mean_cosine``,
        ``effective_rank`` and ``state_norm``; and the effects that :func:`sweep` gives of each control, those of the
        excess itself with the variant ``excess``.
    """
    tables = []
    per_seed = n_shuffles // len(sampling_seeds)
    for split, pool in pools.items():
        sites = results.sites(len(pool.hidden) - 1)
        row = {**context, "split": split, "sample_seed": None, "n": n_samples}
        values: dict[str, list[Tensor]] = {}
        shuffles = []
        for seed in sampling_seeds:
            sample = pool.select(statistics.subsample(len(pool), n_samples, seed))
            states = sample.states
            profile = information.predictive_information(states, sample.targets)
            null = information.permutation_null(states, sample.targets, per_seed, seed)
            shuffles.append(null)
            for quantity, value in (
                ("predictive_information", profile),
                ("null_information", null.mean(0)),
                ("excess_information", profile - null.mean(0)),
                ("state_entropy", information.entropy(information.gram_matrix(states))),
                ("target_entropy", information.entropy(information.gram_matrix(sample.targets)).reshape(1)),
                ("mean_cosine", geometry.mean_cosine(states)),
                ("effective_rank", geometry.effective_rank(states)),
                ("state_norm", geometry.mean_norm(states)),
            ):
                values.setdefault(quantity, []).append(value)
        for quantity, value in values.items():
            tables += _profile_rows(value, sites, quantity, **row)
        high = torch.cat(shuffles).quantile(0.95, dim=0)
        tables.append(results.measurements(high.tolist(), sites, "null_information_high", **row))
        profile, excess = torch.stack(values["predictive_information"]), torch.stack(values["excess_information"])
        ridge = int(information.ridge_layer(profile[:, :-1].mean(0)))
        tables += _fall_rows(profile, excess[:, [ridge, -2]], len(pool), sites, **row)
        tables += _fall_rows(excess, None, len(pool), sites, **row, variant="excess")
    return pd.concat(tables, ignore_index=True)


def sweep(
    pools: Mapping[str, Representations],
    context: Mapping[str, Any],
    *,
    n_samples: int,
    sampling_seeds: Sequence[int],
    sizes: Sequence[int] = (),
    output_targets: Mapping[str, Tensor] | None = None,
    controls: Sequence[Control] = CONTROLS,
) -> pd.DataFrame:
    """Predictive information over the layers under every control, and with other numbers of examples.

    Samples are drawn as in :func:`layers`. With the numbers N of ``sizes`` the paper's own estimate is repeated; those
    above a pool are left out, and the whole pool is added. ``output_targets`` are those of :func:`output_targets`.

    Returns:
        Table of measurements. ``predictive_information`` of each control, and with the variant ``samples`` of each N;
        ``null_information`` (mean over one shuffle for each draw) and ``distinct_targets`` of each N; and of each
        control the effects, over sampling seeds, ``control_fall`` (I at its largest layer less at the last block; the
        layer is chosen on the same examples), ``control_excess`` (at that layer, I less its null),
        ``control_excess_fall`` (the excess there less at the last block) and ``final_norm_fall`` (I at the last block
        less after the final norm).
    """
    tables = []
    for split, pool in pools.items():
        sites = results.sites(len(pool.hidden) - 1)
        draws = [statistics.subsample(len(pool), n_samples, seed) for seed in sampling_seeds]
        states = pool.states
        row = {**context, "split": split, "sample_seed": None, "n": n_samples}
        extra = [] if output_targets is None else [(OUTPUT, output_targets[split])]
        for control, targets in [*((control, pool.targets) for control in controls), *extra]:
            row |= {"variant": control.variant}
            values = control.profiles(states, targets, draws)
            ends = [int(information.ridge_layer(values[:, :-1].mean(0))), -2]
            excess = control.excesses(states[ends], targets, SHUFFLES_PER_CONTROL, sampling_seeds, draws)
            tables += _profile_rows(values, sites, "predictive_information", **row)
            tables += _fall_rows(values, excess, len(pool), sites, **row)
        for size in sorted({size for size in sizes if size < len(pool)} | {len(pool)}):
            seeds = sampling_seeds if size < len(pool) else sampling_seeds[:1]
            parts = [pool.select(statistics.subsample(len(pool), size, seed)) for seed in seeds]
            row |= {"n": size, "variant": "samples"}
            profile = [information.predictive_information(s.states, s.targets) for s in parts]
            null = [
                information.permutation_null(s.states, s.targets, 1, seed)[0]
                for s, seed in zip(parts, seeds, strict=True)
            ]
            distinct = [torch.tensor([len(s.target_ids.unique())]).double() for s in parts]
            tables += _profile_rows(profile, sites, "predictive_information", **row)
            tables += _profile_rows(null, sites, "null_information", **row)[:1]
            tables += _profile_rows(distinct, sites, "distinct_targets", **row)[:1]
    return pd.concat(tables, ignore_index=True)


def ridge_falls(
    pools: Mapping[str, Representations],
    context: Mapping[str, Any],
    *,
    n_halves: int,
    splits: Sequence[str] = ("all", "ood"),
    variants: Sequence[str] = FALLS,
) -> pd.DataFrame:
    """The cross-fitted fall of information from its largest layer to the last block, by the protocol.

    It is taken over ``n_halves`` random halves of each pool, at least 20 (the protocol: 100), for ``variants`` among
    :data:`FALLS`.

    Returns:
        Table of measurements with the effects ``ridge_fall`` (nats; positive: information falls), which stand at the
        last block; ``n`` is the size of the pool.
    """
    tables = []
    for split in splits:
        pool = pools[split]
        site = (len(pool.hidden) - 1, "block")
        row = {**context, "split": split, "sample_seed": None, "n": len(pool)}
        for variant in variants:
            falls = cross_fitted_falls(pool.hidden, pool.targets, variant, range(n_halves))
            effect = inference.half_sample_effect(falls)
            tables.append(inference.effect_rows(effect, site, "ridge_fall", **row, variant=variant))
    return pd.concat(tables, ignore_index=True)


def cross_fitted_falls(states: Tensor, targets: Tensor, variant: str, seeds: Sequence[int]) -> list[float]:
    """The fall to the last layer on one half of the examples, from the layer that is largest on the other half.

    States have shape (layers, N, d), the last block's last, and targets (N, e). Each seed draws a half that chooses,
    and the shuffles of the variant ``excess``. The falls are in nats, 0 where the last layer is chosen.
    """

    def profiles(layers: Tensor, halves: Sequence[Tensor], shuffle_seeds: Sequence[int]) -> Tensor:
        if variant == "excess":
            return PAPER.excesses(layers, targets, SHUFFLES_PER_HALF, shuffle_seeds, halves)
        return _BY_VARIANT[variant].profiles(layers, targets, halves)

    choosing = [statistics.subsample(len(targets), len(targets) // 2, seed) for seed in seeds]
    ridges = information.ridge_layer(profiles(states, choosing, seeds)).tolist()
    falls = []
    for seed, half, ridge in zip(seeds, choosing, ridges, strict=True):
        if ridge == len(states) - 1:
            falls.append(0.0)
            continue
        measuring = torch.ones(len(targets), dtype=torch.bool)
        measuring[half] = False
        at_ridge, at_last = profiles(states[[ridge, -1]], [measuring.nonzero()[:, 0]], [seed])[0].tolist()
        falls.append(at_ridge - at_last)
    return falls


def ridges(table: pd.DataFrame) -> pd.DataFrame:
    """Where information is largest under every control, and whether it falls from there.

    ``table`` is what :func:`layers` and :func:`sweep` gave, of one training seed.

    Returns:
        One row per split, step and variant, in the order of :data:`LABELS`, with ``control`` (its label),
        ``ridge_layer``, ``blocks``, ``fall`` to the last block with ``low`` and ``high``, ``has_ridge`` (the ridge lies
        between the embedding and the last block, and the fall's interval above 0) and ``above_null`` (so do those of
        the excess over the control's own null at the ridge and of the excess's fall).
    """
    keys = ["split", "step", "variant"]
    falls = inference.effects(table, "control_fall").set_index(keys)
    above_null = ("control_excess", "control_excess_fall")
    excesses = [inference.effects(table, name).set_index(keys)["low"] for name in above_null]
    body = table[(table["site"] != "final_norm") & (table["variant"] != "samples")]
    profiles = pd.concat(
        [
            body[body["quantity"] == "predictive_information"],
            body[(body["quantity"] == "excess_information") & (body["variant"] == "")].assign(variant="excess"),
        ]
    )
    means = profiles.pivot_table(index=keys, columns="layer", values="value").reindex(falls.index)
    rows = falls[["estimate", "low", "high"]].rename(columns={"estimate": "fall"})
    rows = rows.assign(ridge_layer=means.idxmax(axis=1).astype(int), blocks=int(body["layer"].max()))
    rows["has_ridge"] = rows["ridge_layer"].between(1, rows["blocks"] - 1) & (rows["low"] > 0)
    # The excess has no null of its own: its fall alone decides.
    smallest = pd.concat(excesses, axis=1).min(axis=1).reindex(rows.index).fillna(rows["low"])
    rows = rows.assign(above_null=rows["has_ridge"] & (smallest > 0)).reset_index()
    rows = rows.assign(control=rows["variant"].map(LABELS), order=rows["variant"].map(list(LABELS).index))
    return rows.sort_values(["split", "step", "order"], ignore_index=True).drop(columns="order")


def output_targets(loaded: LoadedModel, pools: Mapping[str, Representations]) -> dict[str, Tensor] | None:
    """The targets' rows of the output embedding (the head's weight), by split; None where it is the input embedding."""
    with loaded.head() as head:
        weight = head.weight.detach()
        if head.weight is loaded.embedding.weight:
            return None
        return {split: weight[pool.target_ids.to(weight.device)].cpu() for split, pool in pools.items()}


def _profile_rows(
    values: Sequence[Tensor] | Tensor, sites: Sequence[tuple[int, str]], quantity: str, **row: Any
) -> list[pd.DataFrame]:
    """Mean over sampling seeds, and their standard deviation where there are several; one value stands at the start."""
    stacked = torch.stack(list(values))
    sites = sites[: stacked.shape[1]]
    rows = [results.measurements(stacked.mean(0).tolist(), sites, quantity, **row)]
    if len(stacked) > 1:
        rows.append(results.measurements(stacked.std(0).tolist(), sites, f"{quantity}_deviation", **row))
    return rows


def _fall_rows(
    values: Tensor, excess: Tensor | None, pool: int, sites: Sequence[tuple[int, str]], **row: Any
) -> list[pd.DataFrame]:
    """Effects over sampling seeds, from profiles of shape (seeds, layers + 1) and excesses of shape (seeds, 2).

    The excesses are those at the largest layer and at the last block.
    """
    body, norm = values[:, :-1], values[:, -1]
    at_ridge = body[:, int(information.ridge_layer(body.mean(0)))]
    last, after = sites[-2:]
    effects = [("control_fall", last, at_ridge - body[:, -1]), ("final_norm_fall", after, body[:, -1] - norm)]
    if excess is not None:
        effects += [("control_excess", last, excess[:, 0]), ("control_excess_fall", last, excess[:, 0] - excess[:, 1])]
    return [
        inference.effect_rows(inference.subsample_effect(v.tolist(), row["n"] / pool), site, quantity, **row)
        for quantity, site, v in effects
    ]
