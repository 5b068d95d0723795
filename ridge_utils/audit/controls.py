"""Would another estimator show a ridge? Other kernels, bandwidths, orders and transformations, each with its own null.

Profiles are stored as means over sampling seeds, so ``sample_seed`` is empty; ``n`` is the number of examples per
estimate.
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
        drawn = (self._transformed(states[:, sample], targets[sample]) for sample in samples)
        return torch.stack([information.predictive_information(*both, self.estimator) for both in drawn])

    def nulls(
        self, states: Tensor, targets: Tensor, n_shuffles: int, seeds: Sequence[int], samples: Sequence[Tensor]
    ) -> Tensor:
        """Means of :meth:`profiles` over shuffles of the targets, drawn with one seed for each sample."""
        nulls = [
            information.permutation_null(
                *self._transformed(states[:, sample], targets[sample]), n_shuffles, seed, self.estimator
            ).mean(0)
            for sample, seed in zip(samples, seeds, strict=True)
        ]
        return torch.stack(nulls)

    def _transformed(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return geometry.unit_length(self.states(states)), geometry.unit_length(self.targets(targets))


_THREE_DIMENSIONS = partial(geometry.without_largest_dimensions, k=3)
_THREE_COMPONENTS = partial(geometry.without_largest_components, k=3)

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

#: What figures and tables call each variant, in the order that they show it.
LABELS = {control.variant: control.label for control in (*CONTROLS, OUTPUT)}


def check(pool: int, n_samples: int, sampling_seeds: Sequence[int]) -> None:
    """Refuse numbers from which no interval can be made, before anything long begins."""
    statistics.check_sampling(pool, n_samples, sampling_seeds)
    if len(sampling_seeds) < 2 or n_samples == pool:
        raise InputError(
            f"Intervals need 2 sampling_seeds or more and n_samples below the pool of {pool} examples, but there are "
            f"{len(sampling_seeds)} and {n_samples}."
        )


def sweep(
    pools: Mapping[str, Representations],
    context: Mapping[str, Any],
    *,
    n_samples: int,
    sampling_seeds: Sequence[int],
    output_targets: Mapping[str, Tensor] | None = None,
    controls: Sequence[Control] = CONTROLS,
) -> pd.DataFrame:
    """Predictive information over the layers under every control.

    Each sampling seed draws ``n_samples`` examples of a pool without replacement; ``output_targets`` are those of
    :func:`output_targets`.

    Returns:
        Table of measurements. ``predictive_information`` of each control in nats, and the effects over sampling seeds
        ``control_fall`` (I at its largest layer less at the last block; the layer is chosen on the same examples),
        ``control_excess`` (at that layer, I less its null, the mean over :data:`SHUFFLES_PER_CONTROL` shuffles) and
        ``control_excess_fall`` (the excess there less at the last block).
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
            null = control.nulls(states[ends], targets, SHUFFLES_PER_CONTROL, sampling_seeds, draws)
            tables.append(results.measurements(values.mean(0).tolist(), sites, "predictive_information", **row))
            tables += _fall_rows(values[:, :-1], values[:, ends] - null, len(pool), **row)
    return pd.concat(tables, ignore_index=True)


def ridges(table: pd.DataFrame) -> pd.DataFrame:
    """Where information is largest under every control, and whether it falls from there.

    ``table`` is what :func:`sweep` gave, of one training seed.

    Returns:
        One row per split, step and variant, in the order of :data:`LABELS`, with ``control`` (its label),
        ``ridge_layer``, ``blocks``, ``fall`` to the last block with ``low`` and ``high``, ``has_ridge`` (the ridge lies
        between the embedding and the last block, and the fall's interval above 0) and ``above_null`` (so do those of
        the excess over the control's own null at the ridge and of the excess's fall).
    """
    keys = ["split", "step", "variant"]
    falls, excess, excess_fall = (
        inference.effects(table, name).set_index(keys)
        for name in ("control_fall", "control_excess", "control_excess_fall")
    )
    body = table[(table["site"] != "final_norm") & (table["quantity"] == "predictive_information")]
    means = body.pivot_table(index=keys, columns="layer", values="value").reindex(falls.index)
    rows = falls[["estimate", "low", "high"]].rename(columns={"estimate": "fall"})
    rows = rows.assign(ridge_layer=means.idxmax(axis=1).astype(int), blocks=int(body["layer"].max()))
    rows["has_ridge"] = rows["ridge_layer"].between(1, rows["blocks"] - 1) & (rows["low"] > 0)
    rows["above_null"] = rows["has_ridge"] & (excess["low"] > 0) & (excess_fall["low"] > 0)
    rows = rows.reset_index()
    rows = rows.assign(control=rows["variant"].map(LABELS), order=rows["variant"].map(list(LABELS).index))
    return rows.sort_values(["split", "step", "order"], ignore_index=True).drop(columns="order")


def output_targets(loaded: LoadedModel, pools: Mapping[str, Representations]) -> dict[str, Tensor] | None:
    """The targets' rows of the output embedding (the head's weight), by split; None where it is the input embedding."""
    with loaded.head() as head:
        weight = head.weight.detach()
        if head.weight is loaded.embedding.weight:
            return None
        return {split: weight[pool.target_ids.to(weight.device)].cpu() for split, pool in pools.items()}


def _fall_rows(values: Tensor, excess: Tensor, pool: int, **row: Any) -> list[pd.DataFrame]:
    """Effects over sampling seeds, from profiles of shape (seeds, layers) and excesses of shape (seeds, 2).

    The excesses are those at the largest layer and at the last block.
    """
    at_ridge = values[:, int(information.ridge_layer(values.mean(0)))]
    effects = {
        "control_fall": at_ridge - values[:, -1],
        "control_excess": excess[:, 0],
        "control_excess_fall": excess[:, 0] - excess[:, 1],
    }
    end = (values.shape[1] - 1, "block")
    return [
        inference.effect_rows(inference.subsample_effect(v.tolist(), row["n"] / pool), end, quantity, **row)
        for quantity, v in effects.items()
    ]
