r"""Memorisation, tested: some training targets are replaced by random ones, which no rule can predict (claim C3).

What a model recalls of them it has memorised. The early exit says behind which layer: the *depth of recall* of a set of
examples is the layer at which the share recalled reaches half of what it is at the last block, interpolated between the
layers before and after. Compared are the random targets and the intact ones of the same training set.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ridge_utils.errors import InputError
from ridge_utils.inference import CONFIDENCE, RESAMPLES, Effect
from ridge_utils.models import LoadedModel
from ridge_utils.representations import encode
from ridge_utils.tasks import Example


def randomise(
    loaded: LoadedModel, examples: Sequence[Example], share: float, seed: int = 0
) -> tuple[list[Example], Tensor]:
    """Replace the targets of a share of the examples by targets of others.

    A new target is drawn from those of the set that begin with another token than the right one, so that targets keep
    about the frequencies that they have, and what is recalled of it is never right by chance.

    Returns:
        The N examples in their order, and whether each has a random target, shape (N,), bool.
    """
    count = round(share * len(examples)) if 0 < share < 1 else 0
    if not 0 < count < len(examples):
        raise InputError(
            f"share must lie between 0 and 1, replace some of {len(examples)} targets and leave some, but is {share:g}."
        )
    tokens = [encode(loaded, example)[1][0] for example in examples]
    if len(set(tokens)) == 1:
        raise InputError(f"All {len(examples)} targets begin with the same token, so none can be replaced by another.")
    # Seeded by a string, as the tasks are: the same on every machine.
    generator = random.Random(f"memorisation/{seed}")
    chosen = set(generator.sample(range(len(examples)), count))
    made = list(examples)
    for place in sorted(chosen):
        others = [other for other, token in zip(examples, tokens, strict=True) if token != tokens[place]]
        made[place] = replace(made[place], target=generator.choice(others).target)
    return made, torch.tensor([place in chosen for place in range(len(examples))])


def recall_depth(recall: Tensor) -> Tensor:
    """Depth at which the share recalled at layers 0 to L, shape (..., L + 1), first reaches half of its last value.

    In layers, interpolated linearly; NaN where the last value is 0.
    """
    recall = recall.double()
    half = recall[..., -1:] / 2
    layer = (recall >= half).long().argmax(-1, keepdim=True)
    after = recall.gather(-1, layer)
    before = recall.gather(-1, (layer - 1).clamp(min=0))
    # At layer 0 there is nothing to interpolate from.
    part = torch.where(layer > 0, (after - half) / (after - before).clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return torch.where(half > 0, layer - part, math.nan).squeeze(-1)


def depth_effect(correct: Tensor) -> Effect | None:
    """Depth of recall, in layers, with an interval and no p-value; None where nothing is recalled at the last block.

    ``correct`` says whether each target is recalled at layers 0 to L, shape (L + 1, N), as
    :func:`ridge_utils.early_exit.correct` gives it. The bootstrap is over examples.
    """
    return _effect(recall_depth(correct.double().mean(1)), _bootstrap(correct, 0), tested=False)


def depth_difference(random_targets: Tensor, intact_targets: Tensor) -> Effect | None:
    """How many layers deeper random targets are recalled than intact ones; arguments as in :func:`depth_effect`.

    The p-value is twice the smaller share of resamples on either side of 0. None where nothing of one kind is recalled
    at the last block.
    """
    estimate = recall_depth(random_targets.double().mean(1)) - recall_depth(intact_targets.double().mean(1))
    # Two streams of one seed: the samples are independent.
    return _effect(estimate, _bootstrap(random_targets, (0, 0)) - _bootstrap(intact_targets, (0, 1)), tested=True)


def _bootstrap(correct: Tensor, seed: int | tuple[int, int]) -> Tensor:
    """Depth of recall of resampled examples, shape (RESAMPLES,); NaN where none of a resample is recalled."""
    examples = correct.shape[1]
    draws = np.random.default_rng(seed).multinomial(examples, [1 / examples] * examples, size=RESAMPLES)
    return recall_depth(torch.from_numpy(draws).double() @ correct.T.double() / examples)


def _effect(estimate: Tensor, draws: Tensor, tested: bool) -> Effect | None:
    if bool(estimate.isnan()):
        return None
    draws = draws[~draws.isnan()]
    low, high = np.quantile(draws.numpy(), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    fewest = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    p = min(1.0, 2 * (fewest + 1) / (len(draws) + 1)) if tested else math.nan
    return Effect(estimate.item(), float(low), float(high), p, math.nan)
