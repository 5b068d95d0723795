"""Is the ridge made by the estimator? Its null, its ceilings, the states' geometry, and the estimator in other ways.

From the pools of one checkpoint to tidy tables; :mod:`ridge_utils.audit.controls_page` says and draws what they hold.
Profiles are stored as means over sampling seeds with a row ``…_deviation`` beside each, their standard
deviation, so ``sample_seed`` is empty; ``n`` is the number of examples per estimate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Control:
    """Another way to estimate predictive information."""

    #: the name in the column ``variant``; empty for the paper's own
    variant: str
    #: what figures and sentences call it
    label: str
    #: which panel of the figure of controls it belongs to, one of :data:`FAMILIES`
    family: str
    #: what is done to the states of each layer before they are scaled to length 1
    states: Callable[[Tensor], Tensor] = torch.Tensor.double
    #: what is done to the targets before that
    targets: Callable[[Tensor], Tensor] = torch.Tensor.double
    #: kernel, bandwidth and alpha, where they are not the paper's
    options: Mapping[str, Any] = field(default_factory=dict)

    def profiles(self, states: Tensor, targets: Tensor, samples: Sequence[Tensor]) -> Tensor:
        """Information of every layer under this control, estimated from each of several samples, in nats.

        States and targets are transformed within each sample. A state that the transformation makes zero has no
        direction; it lies at distance 1 from those of length 1.

        Args:
            states: shape (layers, N, d).
            targets: shape (N, e).
            samples: indices of examples.

        Returns:
            Shape (samples, layers), float64.

        Raises:
            InputError: as :func:`ridge_utils.information.predictive_information`.
        """
        measure = partial(information.predictive_information, estimator=self._estimator)
        if self._leaves_vectors:
            return measure(*self._transformed(states, targets), samples=samples)
        return torch.stack([measure(*self._transformed(states[:, s], targets[s])) for s in samples])

    def excesses(
        self, states: Tensor, targets: Tensor, n_shuffles: int, seeds: Sequence[int], samples: Sequence[Tensor]
    ) -> Tensor:
        """The same less the mean over shuffles of the targets.

        Args:
            states: shape (layers, N, d).
            targets: shape (N, e).
            n_shuffles: number of shuffles.
            seeds: of the shuffles, one for each sample.
            samples: indices of examples.

        Returns:
            Shape (samples, layers), float64, in nats.

        Raises:
            InputError: as :func:`ridge_utils.information.excess_information`.
        """
        measure = partial(information.excess_information, estimator=self._estimator)
        if self._leaves_vectors:
            return measure(*self._transformed(states, targets), n_shuffles, seeds, samples=samples)
        return torch.stack(
            [
                measure(*self._transformed(states[:, s], targets[s]), n_shuffles, seed)
                for s, seed in zip(samples, seeds, strict=True)
            ]
        )

    @property
    def _estimator(self) -> information.Estimator:
        """Rows come scaled to length 1: a zero row would be refused otherwise."""
        return information.Estimator(normalize=False, **self.options)

    @property
    def _leaves_vectors(self) -> bool:
        """Whether a vector is the same in every sample, so that all samples can share its inner products."""
        return self.states is self.targets is torch.Tensor.double

    def _transformed(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return geometry.unit_length(self.states(states)), geometry.unit_length(self.targets(targets))


#: What the panels of the figure of controls are called.
FAMILIES = {
    "states": "states transformed",
    "targets": "targets transformed",
    "bandwidth": "bandwidth",
    "kernel": "kernel",
    "order": "order of the entropy",
}

_THREE_DIMENSIONS = partial(geometry.without_largest_dimensions, k=3)
_THREE_COMPONENTS = partial(geometry.without_largest_components, k=3)

#: The paper's own estimator.
PAPER = Control("", "the paper's", "")

#: The other ways. Whitening and the removal of dimensions are those of :mod:`ridge_utils.audit.geometry`.
CONTROLS = (
    Control("centred", "Z centred", "states", geometry.centred),
    Control("whitened", "Z whitened", "states", geometry.whitened),
    Control("top_3_dimensions", "Z without its 3 largest dimensions", "states", _THREE_DIMENSIONS),
    Control("top_3_components", "Z without its 3 largest components", "states", _THREE_COMPONENTS),
    Control("targets_centred", "Y centred", "targets", targets=geometry.centred),
    Control("targets_whitened", "Y whitened", "targets", targets=geometry.whitened),
    Control("targets_top_3_dimensions", "Y without its 3 largest dimensions", "targets", targets=_THREE_DIMENSIONS),
    Control("both_centred", "Z and Y centred", "targets", geometry.centred, geometry.centred),
    *(
        Control(f"bandwidth_{s:g}", f"bandwidth {s:g}", "bandwidth", options={"bandwidth": s})
        for s in (0.05, 0.1, 0.2, 0.5, 2.0, 5.0)
    ),
    Control("median_bandwidth", "bandwidth by the median rule", "bandwidth", options={"bandwidth": "median"}),
    *(
        Control(kernel, f"{kernel} kernel", "kernel", options={"kernel": kernel})
        for kernel in ("laplacian", "polynomial", "linear")
    ),
    *(Control(f"order_{a:g}", f"order {a:g}", "order", options={"alpha": a}) for a in (0.5, 1.5, 2.0)),
)

#: The paper's own with Y from the output embedding; measured where that is not the input embedding.
OUTPUT = Control("output_embedding", "Y from the output embedding", "targets")

_BY_VARIANT = {control.variant: control for control in (PAPER, *CONTROLS)}

#: The fall is cross-fitted for these; ``excess`` is the paper's own less its null.
FALLS = ("", "excess", "centred", "whitened", "median_bandwidth")

#: What figures and sentences call each variant, in the order that they show it.
LABELS = {
    "": PAPER.label,
    "excess": "less its permutation null",
    **{control.variant: control.label for control in (*CONTROLS, OUTPUT)},
}


def check(pool: int, n_samples: int, sampling_seeds: Sequence[int], n_shuffles: int, n_halves: int) -> None:
    """Refuse numbers from which no band can be made, before anything long begins.

    Args:
        pool: examples per split.
        n_samples: examples per estimate.
        sampling_seeds: one draw each.
        n_shuffles: shuffles per layer, shared out over the sampling seeds.
        n_halves: random halves of the pool.

    Raises:
        InputError: fewer than 2 sampling seeds, an estimate that takes the whole pool, fewer shuffles than sampling
            seeds, or fewer than 20 halves.
    """
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


def shown(available: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """The checkpoints whose layers are shown.

    Args:
        available: the steps that there are, in order.
        wanted: those asked for.

    Returns:
        Those of them that there are, in order; the first and the last step where there are none.
    """
    return [step for step in available if step in wanted] or sorted({available[0], available[-1]})


def first(pools: Mapping[str, Representations], n: int) -> dict[str, Representations]:
    """The first ``n`` ID and OOD examples, and both together.

    Args:
        pools: representations by split, with ``id`` and ``ood``.
        n: examples per split; 0 for all.

    Raises:
        InputError: n is below 4, so that halves could not have 2 examples, or above the size of a pool.
    """
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

    Args:
        pools: representations by split.
        context: model, task, source, step and train_seed of the rows.
        n_samples: examples per estimate, drawn without replacement from a pool.
        sampling_seeds: one draw each.
        n_shuffles: shuffles per layer, shared out over the sampling seeds.

    Returns:
        Table of measurements. In nats there are ``predictive_information``, ``null_information`` (mean over shuffles),
        ``null_information_high`` (95 % quantile of the shuffles of all sampling seeds), ``excess_information``,
        ``state_entropy``, and ``target_entropy``, which stands at the embedding; then ``mean_cosine``,
        ``effective_rank`` and ``state_norm``; and the effects that :func:`sweep` gives of each control, those of the
        excess itself with the variant ``excess``.

    Raises:
        InputError: as :func:`check` and the estimator.
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
            found = information.predictive_information(states, sample.targets)
            null = information.permutation_null(states, sample.targets, per_seed, seed)
            shuffles.append(null)
            for quantity, value in (
                ("predictive_information", found),
                ("null_information", null.mean(0)),
                ("excess_information", found - null.mean(0)),
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
        found, excess = torch.stack(values["predictive_information"]), torch.stack(values["excess_information"])
        ridge = int(information.ridge_layer(found[:, :-1].mean(0)))
        tables += _fall_rows(found, excess[:, [ridge, -2]], len(pool), sites, **row)
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

    Args:
        pools: representations by split.
        context: model, task, source, step and train_seed of the rows.
        n_samples: examples per estimate under each control, drawn without replacement from a pool.
        sampling_seeds: one draw each.
        sizes: numbers of examples N to repeat the paper's own estimate with; those above a pool are left out, and the
            whole pool is added.
        output_targets: the targets' rows of the output embedding by split, where they are not those of the input's.
        controls: which of :data:`CONTROLS`.

    Returns:
        Table of measurements. ``predictive_information`` of each control, and with the variant ``samples`` of each N;
        ``null_information`` (mean over one shuffle for each draw) and ``distinct_targets`` of each N; and of each
        control the effects, over sampling seeds, ``control_fall`` (I at its largest layer less at the last block; the
        layer is chosen on the same examples), ``control_excess`` (at that layer, I less its null),
        ``control_excess_fall`` (the excess there less at the last block) and ``final_norm_fall`` (I at the last block
        less after the final norm).

    Raises:
        InputError: as :func:`check` and the estimator.
    """
    tables = []
    for split, pool in pools.items():
        sites = results.sites(len(pool.hidden) - 1)
        draws = [statistics.subsample(len(pool), n_samples, seed) for seed in sampling_seeds]
        states = pool.states
        row = {**context, "split": split, "sample_seed": None, "n": n_samples}
        chosen = [(control, pool.targets) for control in controls]
        if output_targets is not None:
            chosen.append((OUTPUT, output_targets[split]))
        for control, targets in chosen:
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
            found = [information.predictive_information(s.states, s.targets) for s in parts]
            null = [
                information.permutation_null(s.states, s.targets, 1, seed)[0]
                for s, seed in zip(parts, seeds, strict=True)
            ]
            distinct = [torch.tensor([len(s.target_ids.unique())]).double() for s in parts]
            tables += _profile_rows(found, sites, "predictive_information", **row)
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

    Args:
        pools: representations by split.
        context: model, task, source, step and train_seed of the rows.
        n_halves: random halves of each pool, at least 20 (the protocol: 100).
        splits: the pools to take.
        variants: of :data:`FALLS`.

    Returns:
        Table of measurements with the effects ``ridge_fall`` (nats; positive: information falls), which stand at the
        last block; ``n`` is the size of the pool.

    Raises:
        InputError: as :func:`ridge_utils.inference.half_sample_effect` and the estimator.
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

    Args:
        states: shape (layers, N, d), the last block's last.
        targets: shape (N, e).
        variant: of :data:`FALLS`.
        seeds: one draw each of the half that chooses, and of the shuffles of ``excess``.

    Returns:
        The falls in nats, 0 where the last layer is chosen.

    Raises:
        InputError: as the estimator.
    """

    def profiles(layers: Tensor, halves: Sequence[Tensor], own: Sequence[int]) -> Tensor:
        if variant == "excess":
            return PAPER.excesses(layers, targets, SHUFFLES_PER_HALF, own, halves)
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


def output_targets(loaded: LoadedModel, pools: Mapping[str, Representations]) -> dict[str, Tensor] | None:
    """The targets' rows of the output embedding (the head's weight), by split; None where it is the input embedding.

    Args:
        loaded: the model that gave the states.
        pools: representations by split.
    """
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
    found = [("control_fall", last, at_ridge - body[:, -1]), ("final_norm_fall", after, body[:, -1] - norm)]
    if excess is not None:
        found += [("control_excess", last, excess[:, 0]), ("control_excess_fall", last, excess[:, 0] - excess[:, 1])]
    return [
        inference.effect_rows(inference.subsample_effect(v.tolist(), row["n"] / pool), site, quantity, **row)
        for quantity, site, v in found
    ]
