r"""Residual scaling: one learned factor on every block's update, the weights frozen (paper, Figures 6 and 10, Table 5).

With the scale :math:`\beta_l \geq 0` of block :math:`l` the residual stream becomes

.. math:: z_l = z_{l-1} + \beta_l \, (\mathrm{block}_l(z_{l-1}) - z_{l-1}),

where :math:`\mathrm{block}_l` is the whole block, attention and feed-forward part, its input included. All scales at 1
are the untouched model; a scale of 0 skips the block. The scale acts at every position, not only at the last one.
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from ridge_utils.batches import progress_bar, work_through
from ridge_utils.errors import InputError, at_least, finite_and_positive
from ridge_utils.models import LoadedModel
from ridge_utils.representations import encode, encode_whole, pad
from ridge_utils.tasks import Example

#: Token ids of a prompt and of its target, as ``representations.encode`` gives them.
_Row = tuple[list[int], list[int]]


@dataclass(frozen=True)
class FitSettings:
    """How scales are fitted: L-BFGS-B on the loss of all examples at once; the paper names no optimiser."""

    #: a fit has converged when a step lowers the loss by less than this share of it (or this many nats, if more)
    tolerance: float = 1e-3
    #: steps at most
    steps: int = 100
    #: examples at a time; they change nothing but rounding
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        at_least(1, steps=self.steps, batch_size=self.batch_size)
        finite_and_positive(tolerance=self.tolerance)


@dataclass(frozen=True)
class Fit:
    """Fitted scales and how the loss fell."""

    #: beta_1 to beta_L, each at least 0, shape (blocks,), float64
    scales: Tensor
    #: the loss before the first step and after each, nats a target token, shape (1 + steps,), float64
    losses: Tensor
    #: whether it ended because it had converged, shape (), bool
    converged: Tensor


@dataclass(frozen=True)
class Evaluation:
    """How a model predicts the first target token of N examples."""

    #: whether that token is the likeliest one after the prompt, shape (N,), bool
    correct: Tensor
    #: its negative log-probability, nats, shape (N,), float64
    cross_entropy: Tensor


@contextlib.contextmanager
def scaled(loaded: LoadedModel, scales: Tensor) -> Iterator[None]:
    """Within this context the model scales each block's update.

    Whatever runs the model meets the scaled blocks: ``representations.collect`` does; ``store.remember`` need not, for
    it finds its entries by the weights alone. A scale of exactly 1 leaves its block's output as it is bit for
    bit, and a scale of exactly 0 passes its input on. The scales are read at every forward pass, so an optimiser may
    move them in between, and gradients flow to them. Nested contexts multiply their scales, beta_1 to beta_L, shape
    (blocks,). The hooks are removed at the end, also when the body raises.
    """
    with contextlib.ExitStack() as hooks:
        for index, block in enumerate(loaded.blocks):
            hooks.enter_context(block.register_forward_hook(_scaling(scales, index), with_kwargs=True))
        yield


def fit(loaded: LoadedModel, examples: Sequence[Example], settings: FitSettings, progress: bool | str = True) -> Fit:
    """Fit one scale a block to the targets of ``examples``, all weights frozen, until the loss falls no more.

    The loss is that of ``training``: the mean cross-entropy over all target tokens and over nothing else. Every scale
    starts at 1. Nothing is random, but rounding can decide after which step a fit ends, and so where a scale ends that
    the loss hardly depends on. Weights of 16 bits round the loss more than the last steps change it.
    """
    if not examples:
        raise InputError("There are no examples to fit the scales to.")
    rows = encode_whole(loaded, examples)
    order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i])))
    tokens = sum(len(target) for _, target in rows)
    label = f"fit of scales, {progress}" if isinstance(progress, str) else "fit of scales"
    bar = tqdm(desc=label, unit="prompt", disable=not progress)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        scales = torch.tensor(values, requires_grad=True)
        total, slope = 0.0, torch.zeros_like(scales)

        def add(index: list[int]) -> None:
            nonlocal total
            part = cross_entropy(*_predictions(loaded, [rows[i] for i in index]), reduction="sum") / tokens
            slope.add_(*torch.autograd.grad(part, scales))
            total += part.item()

        with scaled(loaded, scales):
            work_through(order, settings.batch_size, add, bar)
        if not (math.isfinite(total) and bool(slope.isfinite().all())):
            raise InputError(
                f"The loss or its gradient is not finite (the loss is {total:g}) at scales from {values.min():g} to "
                f"{values.max():g}: load the model in a wider dtype, or check its weights."
            )
        return total, slope.numpy()

    def report(intermediate_result: OptimizeResult) -> None:
        losses.append(float(intermediate_result.fun))
        bar.set_postfix(loss=f"{losses[-1]:.3f}")

    start = np.ones(len(loaded.blocks))
    options = {"maxiter": settings.steps, "ftol": settings.tolerance, "gtol": 0.0}
    with bar, _frozen(loaded.model):
        losses = [loss(start)[0]]
        found = minimize(
            loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(start), callback=report, options=options
        )
    return Fit(torch.from_numpy(found.x), torch.tensor(losses, dtype=torch.float64), torch.tensor(bool(found.success)))


def evaluate(
    loaded: LoadedModel,
    examples: Sequence[Example],
    scales: Tensor | None = None,
    batch_size: int = 16,
    progress: bool | str = True,
) -> Evaluation:
    """How well the model, :func:`scaled` where there are scales, predicts the first target token of each example.

    Prompts are sorted by length and padded on the right, so neither the batch size nor the company of a prompt changes
    its result beyond rounding.
    """
    if not examples:
        raise InputError("There are no examples to evaluate the model on.")
    encoded = [encode(loaded, example) for example in examples]
    rows = [(prompt, target[:1]) for prompt, target in encoded]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    correct = torch.empty(len(rows), dtype=torch.bool)
    nats = torch.empty(len(rows), dtype=torch.float64)

    def predict(index: list[int]) -> None:
        logits, tokens = _predictions(loaded, [rows[i] for i in index])
        correct[index] = (logits.argmax(-1) == tokens).cpu()
        nats[index] = cross_entropy(logits, tokens, reduction="none").cpu().double()

    scaling = contextlib.nullcontext() if scales is None else scaled(loaded, scales)
    with progress_bar("next token", progress, len(rows)) as bar, torch.inference_mode(), scaling:
        work_through(order, batch_size, predict, bar)
    if bool((bad := ~nats.isfinite()).any()):
        raise InputError(
            f"Model {loaded.name!r} gives a NaN or infinite cross-entropy for example {int(bad.nonzero()[0])}: load it "
            "in a wider dtype, or check its weights and the scales."
        )
    return Evaluation(correct, nats)


def _scaling(scales: Tensor, index: int) -> Callable[..., Any]:
    """A forward hook that scales the update of block ``index``."""

    def hook(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        # In bfloat16 a scale of 1.003 would be 1. lerp is exact at both ends: 0 gives `before`, 1 gives `after`.
        wide = torch.promote_types(after.dtype, torch.float32)
        state = torch.lerp(before.to(after.device, wide), after.to(wide), scales[index].to(after.device, wide))
        state = state.to(after.dtype)
        return (state, *output[1:]) if isinstance(output, tuple) else state

    return hook


def _predictions(loaded: LoadedModel, rows: Sequence[_Row]) -> tuple[Tensor, Tensor]:
    """Logits from which the rows' M target tokens are predicted, shape (M, vocabulary), and these tokens, shape (M,).

    Where the model's forward has ``logits_to_keep``, positions that no row needs get no logits: over a large vocabulary
    those are much of the cost and most of the memory of a pass.
    """
    ids, mask = pad([prompt + target[:-1] for prompt, target in rows], loaded)
    places = [
        (row, len(prompt) - 1 + offset) for row, (prompt, target) in enumerate(rows) for offset in range(len(target))
    ]
    row, position = torch.tensor(places).unbind(-1)
    kept: dict[str, Tensor] = {}
    if "logits_to_keep" in inspect.signature(loaded.model.forward).parameters:
        kept["logits_to_keep"], position = position.unique(return_inverse=True)
    logits = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False, **kept).logits[row, position]
    tokens = torch.tensor([token for _, target in rows for token in target], device=logits.device)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), tokens


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Without dropout and without gradients of the weights, which would cost a third of a step."""
    training = model.training
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        model.train(training)
        for parameter in wanted:
            parameter.requires_grad_(True)
