r"""Interventions on single blocks, and what each does to the prediction of the first target token.

With the states :math:`Z_l` of the untouched run at every position, the output of one block is replaced, and the blocks
after it run on what they are given:

* *skip* (:math:`\beta_l = 0`): by the block's input, :math:`Z_{l-1}`;
* *mean ablation*: by :math:`Z_{l-1} + \overline{\Delta Z_l}`, with the update's mean over prompts, so that what the
  block adds to every prompt stays and what it adds to this one goes;
* *patching* from a clean prompt :math:`c` into a corrupted one of as many tokens and another target: the state at the
  last position alone by :math:`Z_l^c`.

The blocks before the one intervened on cannot change, so they are not run again: that halves the cost.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ridge_utils.batches import progress_bar
from ridge_utils.models import LoadedModel
from ridge_utils.representations import encode
from ridge_utils.residual_scaling import Evaluation, evaluate
from ridge_utils.tasks import Example

Ablation = Literal["skip", "mean"]

#: Kinds of positions, each with a mean of its own.
_FIRST, _BETWEEN, _LAST = range(3)


@dataclass(frozen=True)
class Outcomes:
    """How well N first target tokens are predicted, untouched and with one of M blocks intervened on at a time."""

    #: log-probability of the first target token, nats, shape (1 + M, N), float64; row 0 is the untouched run
    log_probability: Tensor
    #: whether that token is the likeliest one, shape (1 + M, N), bool
    correct: Tensor


@dataclass(frozen=True)
class Patching(Outcomes):
    """How well corrupted prompts predict the clean ones' target; row 0 is the corrupted run as it is."""

    #: log-probability of the same token after the clean prompt, nats, shape (N,), float64
    clean: Tensor


@dataclass(frozen=True)
class Pair:
    """Two prompts of as many tokens whose targets begin with different tokens."""

    #: where the states come from
    clean: Example
    #: where they are put; its target is the clean one's
    corrupted: Example


def ablate(
    loaded: LoadedModel,
    examples: Sequence[Example],
    blocks: Sequence[int],
    how: Ablation = "skip",
    batch_size: int = 16,
    progress: bool | str = True,
) -> Outcomes:
    """Take one block at a time out of the model; the M blocks are numbered from 1.

    Mean ablation averages a block's update over ``examples`` themselves, at three kinds of positions apart: the first
    token, on which models put states of another size, the last one of the prompt, from which the target is predicted,
    and all between them.
    """
    means = mean_updates(loaded, examples, batch_size) if how == "mean" else None

    def of_batch(_index: list[int], run: _Run) -> Callable[[int], Tensor]:
        if means is None:
            return lambda block: run.states[block - 1]
        return lambda block: run.states[block - 1] + means[block - 1].to(run.states[0])[run.kinds]

    return _intervene(loaded, examples, blocks, batch_size, f"ablation, {how}", progress, of_batch)


def mean_updates(loaded: LoadedModel, examples: Sequence[Example], batch_size: int = 16) -> Tensor:
    """Mean residual update of every block over the prompts of ``examples``, by kind of position; shape (blocks, 3, d).

    The kinds are the first position, all between, and the last one of a prompt; where no prompt has such a position the
    mean is 0. A prompt of one token has a last position only.
    """
    total = torch.zeros(len(loaded.blocks), 3, loaded.width, dtype=torch.float64)
    count = torch.zeros(3, 1, dtype=torch.float64)
    with torch.inference_mode():
        for index in _batches(loaded, examples, batch_size):
            run = _untouched(loaded, [examples[i] for i in index])
            kinds = run.kinds[run.inside].cpu()
            count += kinds.bincount(minlength=3).unsqueeze(1)
            for place, (before, after) in enumerate(zip(run.states[:-1], run.states[1:], strict=True)):
                total[place].index_add_(0, kinds, (after - before)[run.inside].cpu().double())
    return total / count.clamp(min=1)


def match(loaded: LoadedModel, clean: Sequence[Example], candidates: Sequence[Example]) -> list[Pair]:
    """Find a corrupted prompt for each clean one: of as many tokens, and with another first target token.

    Each candidate is used once, and the clean prompts may be among them. Both are taken in their order, and a clean
    prompt that no candidate is left for is left out.
    """
    free: dict[int, list[tuple[int, Example]]] = {}
    for candidate in candidates:
        prompt, target = encode(loaded, candidate)
        free.setdefault(len(prompt), []).append((target[0], candidate))
    pairs = []
    for example in clean:
        prompt, target = encode(loaded, example)
        as_long = free.get(len(prompt), [])
        for place, (token, candidate) in enumerate(as_long):
            corrupted = replace(candidate, target=example.target)
            # Behind another prompt the same text may be cut into other tokens.
            if token != target[0] and encode(loaded, corrupted)[1][0] == target[0]:
                pairs.append(Pair(example, corrupted))
                del as_long[place]
                break
    return pairs


def patch(
    loaded: LoadedModel,
    pairs: Sequence[Pair],
    blocks: Sequence[int],
    batch_size: int = 16,
    progress: bool | str = True,
) -> Patching:
    """Put the state behind one block at a time at the clean prompts' last position into the runs of the corrupted ones.

    The prompts of a pair have the same length, as :func:`match` finds them. Behind the last block that gives the clean
    run.
    """
    corrupted = [pair.corrupted for pair in pairs]
    clean_nats = torch.empty(len(pairs), dtype=torch.float64)

    def of_batch(index: list[int], run: _Run) -> Callable[[int], Tensor]:
        clean = _untouched(loaded, [pairs[i].clean for i in index])
        clean_nats[index] = -clean.evaluation.cross_entropy

        def state(block: int) -> Tensor:
            return torch.where((run.kinds == _LAST).unsqueeze(-1), clean.states[block], run.states[block])

        return state

    outcomes = _intervene(loaded, corrupted, blocks, batch_size, "patching", progress, of_batch)
    return Patching(outcomes.log_probability, outcomes.correct, clean_nats)


@dataclass(frozen=True)
class _Run:
    """An untouched run of B prompts."""

    #: what every block gave, as it gave it
    outputs: list[Any]
    #: Z_0 to Z_L at every position, each of shape (B, length, d)
    states: list[Tensor]
    #: kind of every position, shape (B, length)
    kinds: Tensor
    #: whether a position is one of the prompt's and no padding, shape (B, length)
    inside: Tensor
    evaluation: Evaluation


def _untouched(loaded: LoadedModel, batch: Sequence[Example]) -> _Run:
    """Run prompts that are sorted by their length, and keep everything."""
    outputs: list[Any] = []
    inputs: list[Tensor] = []

    def keep_input(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append(args[0] if args else kwargs["hidden_states"])

    with contextlib.ExitStack() as hooks:
        hooks.callback(loaded.blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True).remove)
        for block in loaded.blocks:
            hooks.callback(block.register_forward_hook(lambda _block, _args, output: outputs.append(output)).remove)
        evaluation = evaluate(loaded, batch, batch_size=len(batch), progress=False)
    states = [*inputs, *(output[0] if isinstance(output, tuple) else output for output in outputs)]
    lengths = torch.tensor([[len(encode(loaded, example)[0])] for example in batch])
    position = torch.arange(states[0].shape[1]).expand(len(batch), -1)
    kinds = torch.full_like(position, _BETWEEN)
    kinds[:, 0] = _FIRST
    kinds[position == lengths - 1] = _LAST
    device = states[0].device
    return _Run(outputs, states, kinds.to(device), (position < lengths).to(device), evaluation)


def _intervene(
    loaded: LoadedModel,
    examples: Sequence[Example],
    blocks: Sequence[int],
    batch_size: int,
    what: str,
    progress: bool | str,
    of_batch: Callable[[list[int], _Run], Callable[[int], Tensor]],
) -> Outcomes:
    """Outcomes with the state behind each block replaced by what ``of_batch`` says, shape (B, length, d)."""
    nats = torch.empty(1 + len(blocks), len(examples), dtype=torch.float64)
    correct = torch.empty(nats.shape, dtype=torch.bool)
    with progress_bar(what, progress, len(examples) * len(blocks)) as bar, torch.inference_mode():
        for index in _batches(loaded, examples, batch_size):
            batch = [examples[i] for i in index]
            run = _untouched(loaded, batch)
            state_behind = of_batch(index, run)
            nats[0, index], correct[0, index] = -run.evaluation.cross_entropy, run.evaluation.correct
            for row, block in enumerate(blocks, 1):
                with _given(loaded, run.outputs, block, state_behind(block)):
                    evaluation = evaluate(loaded, batch, batch_size=len(batch), progress=False)
                nats[row, index], correct[row, index] = -evaluation.cross_entropy, evaluation.correct
                bar.update(len(index))
    return Outcomes(nats, correct)


@contextlib.contextmanager
def _given(loaded: LoadedModel, outputs: Sequence[Any], last: int, state: Tensor) -> Iterator[None]:
    """Within this context blocks 1 to ``last`` compute nothing: they give ``outputs``, the last of them ``state``."""
    given = list(outputs[:last])
    given[-1] = (state, *given[-1][1:]) if isinstance(given[-1], tuple) else state
    # An instance's own forward stands before its class's, and hooks and the model around it see no difference.
    earlier = [vars(block).get("forward") for block in loaded.blocks[:last]]
    try:
        for block, output in zip(loaded.blocks[:last], given, strict=True):
            block.forward = lambda *_args, output=output, **_kwargs: output
        yield
    finally:
        for block, forward in zip(loaded.blocks[:last], earlier, strict=True):
            vars(block).pop("forward", None)
            if forward is not None:
                block.forward = forward


def _batches(loaded: LoadedModel, examples: Sequence[Example], size: int) -> list[list[int]]:
    """Indices of batches, the shortest prompts first."""
    order = sorted(range(len(examples)), key=lambda i: len(encode(loaded, examples[i])[0]))
    return [order[start : start + size] for start in range(0, len(order), size)]
