r"""Early exits with trained parts: an affine translator per layer (a tuned lens), and a head per layer.

Early exit hands the state of a middle layer to a final norm and a head that were never trained for it, so a wrong
answer may be the exit's fault and not the state's. Here each layer gets a part of its own, fitted to the last prompt
tokens of *training* prompts; the examples that it is judged on are others. A fifth of the training states fits nothing:
the part is kept as it was after the epoch that did best on them, which may be the start, the model's own exit.

Both parts see a state standardised over the training states, :math:`x = (z - \mu) / \sigma` in each dimension, for a
few dimensions of a residual stream are far larger than the others. That changes what is easy to learn, not what can be:
:math:`z + A z + b` and :math:`W z + b` are what comes out. All of it is float32, and seeded.

.. [Belrose23] N. Belrose, Z. Furman, L. Smith, D. Halawi, I. Ostrovsky, L. McKinney, S. Biderman, J. Steinhardt.
   *Eliciting Latent Predictions from Transformers with the Tuned Lens.* 2023. arXiv:2303.08112.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from tqdm import tqdm

from ridge_utils.early_exit import likeliest
from ridge_utils.errors import InputError
from ridge_utils.models import LoadedModel
from ridge_utils.representations import Representations

#: Share of the training states that fit nothing and say when to stop.
HELD_OUT = 0.2

#: Below this share of a layer's root mean square, the spread of a dimension is rounding: it is left out.
_CONSTANT = 1e-5


@dataclass(frozen=True)
class Settings:
    """How the parts of all layers are trained: Adam on shuffled batches, at a rate that falls linearly to 0."""

    #: passes over the training states
    epochs: int = 6
    #: about the most that the first step moves an output, in units of the states' size (translator) or nats (head)
    learning_rate: float = 0.1
    #: training states per step
    batch_size: int = 32
    #: seed of the held-out fifth and of the order of the rest
    seed: int = 0


#: How translators are trained where nothing else is said.
TRANSLATOR = Settings()
#: How heads are trained where nothing else is said. In early layers the model's own head is off by tens of nats.
HEAD = Settings(epochs=40, learning_rate=1.0)


@dataclass(frozen=True)
class TrainedParts:
    """A trained part for each of K layers, and what training it did."""

    #: the K layers, 0 for the embedding, shape (K,), int64
    layers: Tensor
    #: matrix and vector of each layer, shape (K, ..., d) and (K, ...)
    weight: Tensor
    bias: Tensor
    #: what was minimised, on the held-out states at the start, nats, shape (K,), float64
    before: Tensor
    #: the same with the part
    after: Tensor


@dataclass(frozen=True)
class Translators(TrainedParts):
    """An affine map before the final norm for each of K layers, z -> z + A z + b; weights are A, biases b.

    What is minimised is the divergence from the model's own prediction.
    """

    def correct(self, loaded: LoadedModel, representations: Representations) -> Tensor:
        """Whether the first target token is the likeliest after translation, final norm and head; shape (K, N)."""
        end = _End.of(loaded)
        rows = []
        for layer, weight, bias in zip(self.layers.tolist(), self.weight, self.bias, strict=True):
            states = representations.hidden[layer].float()
            rows.append(end.likeliest(states + linear(states, weight, bias), representations.target_ids))
        return torch.stack(rows)


@dataclass(frozen=True)
class Heads(TrainedParts):
    """The final norm's state read by a head of its own for each of K layers.

    Only the rows of C tokens are the layer's own, all others are the model's: weights, shape (K, C, d), are added to
    the model's rows of these tokens, and biases, shape (K, C), to their logits. What is minimised is the cross-entropy.
    """

    #: the C tokens, ascending, shape (C,), int64
    token_ids: Tensor

    def correct(self, loaded: LoadedModel, representations: Representations) -> Tensor:
        """Whether the first target token is the likeliest after the final norm and the layer's head; shape (K, N)."""
        end, ids = _End.of(loaded), representations.target_ids
        rows = []
        for layer, weight, bias in zip(self.layers.tolist(), self.weight, self.bias, strict=True):
            rows.append(end.adding(self.token_ids, weight, bias).likeliest(representations.hidden[layer].float(), ids))
        return torch.stack(rows)


def held_out(count: int) -> int:
    """How many of ``count`` training states fit nothing."""
    return max(1, round(HELD_OUT * count))


def fit_translators(
    loaded: LoadedModel,
    training: Representations,
    layers: Sequence[int],
    settings: Settings = TRANSLATOR,
    progress: bool | str = True,
) -> Translators:
    r"""Fit a translator per layer to the model's own predictions (tuned lens, [Belrose23]_).

    Minimised is :math:`\mathrm{KL}(p \Vert q_l)`, in nats, between the model's distribution of the next token and that
    of the exit after translation, over the whole vocabulary. The targets play no part. ``training`` are the model's
    states on training prompts, at least 2; layer 0 is the embedding.
    """
    end = _End.of(loaded)
    with torch.no_grad():
        batches = training.final_norm.to(end.weight).split(settings.batch_size)
        final = torch.cat([linear(states, end.weight, end.bias).softmax(-1) for states in batches])
    entropy = torch.special.entr(final).sum(-1)
    width = loaded.width

    def fit(layer: int) -> _Fitted:
        states = training.hidden[layer].to(end.weight)
        mean, inverse = _standard(states)
        inputs, spread = (states - mean) * inverse, states.square().mean().sqrt()
        weight, bias = torch.zeros(width, width).to(states), torch.zeros(width).to(states)

        def divergence(index: Tensor) -> Tensor:
            moved = states[index] + spread * linear(inputs[index], weight, bias)
            return cross_entropy(end.logits(moved), final[index], reduction="none") - entropy[index]

        fitted = _descend(weight, bias, divergence, len(training), settings)
        # What was fitted to standardised states, for the states as they are.
        weight = spread * weight * inverse
        return weight, spread * bias - weight @ mean, *fitted

    return Translators(torch.tensor(layers), **_each(training, layers, fit, "translators", progress))


def fit_heads(
    loaded: LoadedModel,
    training: Representations,
    layers: Sequence[int],
    settings: Settings = HEAD,
    progress: bool | str = True,
) -> Heads:
    """Fit a head per layer to the targets of the training prompts.

    It reads the state after the model's final norm and starts as the model's head. Trained are its rows of the tokens
    that are a first target token in training, a bias each, and one bias for all other tokens together, whose rows stay
    the model's. Minimised is the cross-entropy over the whole vocabulary, in nats.
    """
    end = _End.of(loaded)
    token_ids, classes = training.target_ids.unique(return_inverse=True)
    columns, classes = token_ids.to(end.weight.device), classes.to(end.weight.device)

    def fit(layer: int) -> _Fitted:
        with torch.no_grad():
            states = end.norm(training.hidden[layer].to(end.weight))
            untouched, others = [], []
            for some in states.split(settings.batch_size):
                logits = linear(some, end.weight, end.bias)
                untouched.append(logits[:, columns])
                # The other tokens are the same at every step, so their sum is taken once.
                others.append(logits.index_fill_(1, columns, -math.inf).logsumexp(-1, keepdim=True))
            known, others_sum = torch.cat(untouched), torch.cat(others)
        mean, inverse = _standard(states)
        inputs = (states - mean) * inverse
        weight = torch.zeros(len(columns), loaded.width).to(states)
        bias = torch.zeros(len(columns) + 1).to(states)

        def surprise(index: Tensor) -> Tensor:
            logits = torch.cat([known[index] + linear(inputs[index], weight), others_sum[index]], -1) + bias
            return cross_entropy(logits, classes[index], reduction="none")

        fitted = _descend(weight, bias, surprise, len(training), settings)
        weight = weight * inverse
        # Only differences of logits count, so the bias of the other tokens can go to these ones.
        return weight, bias[:-1] - bias[-1] - weight @ mean, *fitted

    parts = _each(training, layers, fit, "heads", progress)
    return Heads(torch.tensor(layers), **parts, token_ids=token_ids)


#: Weight and bias of one layer, and what was minimised before and after, nats.
_Fitted = tuple[Tensor, Tensor, float, float]


@dataclass(frozen=True)
class _End:
    """What follows the last block, in float32 and frozen: the final norm and the head."""

    norm: nn.Module
    weight: Tensor
    bias: Tensor | None

    @staticmethod
    def of(loaded: LoadedModel) -> "_End":
        norm = copy.deepcopy(loaded.final_norm).float().requires_grad_(False)
        with loaded.head() as head:
            bias = getattr(head, "bias", None)
            return _End(norm, head.weight.detach().float(), None if bias is None else bias.detach().float())

    def logits(self, states: Tensor) -> Tensor:
        return linear(self.norm(states), self.weight, self.bias)

    def likeliest(self, states: Tensor, token_ids: Tensor) -> Tensor:
        with torch.no_grad():
            return likeliest(self.norm(states.to(self.weight.device)), token_ids, self.weight, self.bias)

    def adding(self, token_ids: Tensor, weight: Tensor, bias: Tensor) -> "_End":
        """The same with something added to the rows and the biases of some tokens."""
        ids = token_ids.to(self.weight.device)
        whole = self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias
        rows = self.weight.index_add(0, ids, weight.to(self.weight))
        return _End(self.norm, rows, whole.index_add(0, ids, bias.to(self.weight)))


def _each(
    training: Representations,
    layers: Sequence[int],
    fit: Callable[[int], _Fitted],
    what: str,
    progress: bool | str,
) -> dict[str, Tensor]:
    """What ``fit`` gives for each layer, stacked."""
    if len(training) < 2:
        raise InputError(f"At least 2 training states are needed, one to fit and one to hold out, not {len(training)}.")
    label = f"{what}, {progress}" if isinstance(progress, str) else what
    every = [fit(layer) for layer in tqdm(layers, desc=label, unit="layer", disable=not progress)]
    weight, bias, *losses = zip(*every, strict=True)
    before, after = torch.tensor(losses, dtype=torch.float64)
    return {"weight": torch.stack(weight).cpu(), "bias": torch.stack(bias).cpu(), "before": before, "after": after}


def _standard(states: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each dimension, and one over its standard deviation; 0 where the dimension does not vary."""
    deviation = states.std(0, correction=0)
    varies = deviation > _CONSTANT * states.square().mean().sqrt()
    return states.mean(0), torch.where(varies, 1 / deviation, 0)


def _descend(
    weight: Tensor, bias: Tensor, loss: Callable[[Tensor], Tensor], count: int, settings: Settings
) -> tuple[float, float]:
    """Train ``weight`` and ``bias``, both zero, in place, and leave them as they were after the best epoch.

    ``loss`` gives that of the training states at some of ``count`` indices, one value each. What comes back is the loss
    on the held-out states at the start and after the best epoch.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    aside, fitted = torch.randperm(count, generator=generator).tensor_split([held_out(count)])
    kept = [weight.clone(), bias.clone()]
    weight.requires_grad_(True)
    bias.requires_grad_(True)
    # Adam moves every weight by about the rate, and an output by as many of them as the state has dimensions.
    groups = [{"params": [weight], "lr": settings.learning_rate / weight.shape[1]}, {"params": [bias]}]
    optimiser = torch.optim.Adam(groups, lr=settings.learning_rate)
    steps = settings.epochs * math.ceil(len(fitted) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=steps)
    before = best = _mean(loss, aside, settings.batch_size)
    for _ in range(settings.epochs):
        order = fitted[torch.randperm(len(fitted), generator=generator)]
        for batch in order.split(settings.batch_size):
            optimiser.zero_grad()
            loss(batch).mean().backward()
            optimiser.step()
            schedule.step()
        now = _mean(loss, aside, settings.batch_size)
        if now < best:
            best = now
            kept = [weight.detach().clone(), bias.detach().clone()]
    with torch.no_grad():
        for parameter, value in zip((weight, bias), kept, strict=True):
            parameter.requires_grad_(False)
            parameter.copy_(value)
    return before, best


def _mean(loss: Callable[[Tensor], Tensor], index: Tensor, batch_size: int) -> float:
    with torch.no_grad():
        return torch.cat([loss(some) for some in index.split(batch_size)]).double().mean().item()
