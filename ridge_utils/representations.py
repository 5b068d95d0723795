"""From prompts to hidden states: one forward pass of the model's body, kept at the last prompt token only."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ridge_utils.batches import progress_bar, work_through
from ridge_utils.errors import InputError
from ridge_utils.models import LoadedModel
from ridge_utils.tasks import Example


@dataclass(frozen=True)
class States:
    """States at the last token of N prompts, on the CPU; float32, or float64 from a float64 model."""

    #: Z_0 (embedding output) to Z_L (last block's output, before the final norm), shape (blocks + 1, N, d)
    hidden: Tensor
    #: Z_L after the final norm, shape (N, d), taken from the norm itself. In transformers 5.23.0, the pinned version,
    #: ``hidden_states[-1]`` is this too, unless ``config.tie_last_hidden_states`` is False: then it is Z_L.
    final_norm: Tensor

    def __len__(self) -> int:
        """Number of prompts N."""
        return len(self.final_norm)


@dataclass(frozen=True)
class Representations(States):
    """The states of N examples, and what their prompts are to be gone on with."""

    #: input-embedding row of the first target token, Y of the paper, shape (N, d)
    targets: Tensor
    #: first token of each target, shape (N,), int64
    target_ids: Tensor

    @property
    def updates(self) -> Tensor:
        """Residual updates dZ_l = Z_l - Z_{l-1}, shape (blocks, N, d)."""
        return self.hidden[1:] - self.hidden[:-1]

    @property
    def states(self) -> Tensor:
        """Z_0 to Z_L and, last, Z_L after the final norm, shape (blocks + 2, N, d)."""
        return torch.cat([self.hidden, self.final_norm.unsqueeze(0)])

    def select(self, index: Tensor | Sequence[int]) -> "Representations":
        """The examples at ``index``, in that order."""
        index = torch.as_tensor(index)
        return Representations(
            self.hidden[:, index], self.final_norm[index], self.targets[index], self.target_ids[index]
        )

    @staticmethod
    def join(parts: Sequence["Representations"]) -> "Representations":
        """The examples of several parts, one after the other."""
        return Representations(
            torch.cat([part.hidden for part in parts], dim=1),
            torch.cat([part.final_norm for part in parts]),
            torch.cat([part.targets for part in parts]),
            torch.cat([part.target_ids for part in parts]),
        )


def collect(
    loaded: LoadedModel, examples: Sequence[Example], batch_size: int = 16, progress: bool | str | tqdm = True
) -> Representations:
    """Run the examples' prompts through the model and keep the states at each prompt's last token.

    Prompts are sorted by length and padded on the right, where a causal model cannot see the padding, so neither the
    batch size nor the company of a prompt changes its states beyond rounding. The head is not applied.

    Args:
        batch_size: prompts per forward pass, fewer where they do not fit into memory.
        progress: show a progress bar; a text labels it, and a bar of the caller's is moved on.
    """
    encoded = [encode(loaded, example) for example in examples]
    states = forward([prompt for prompt, _ in encoded], loaded, batch_size, progress)
    return with_targets(states, [target for _, target in encoded], loaded)


def with_targets(states: States, targets: Sequence[Sequence[int]], loaded: LoadedModel) -> Representations:
    """States of some prompts with the first of the tokens that each is to be gone on with."""
    target_ids = torch.tensor([target[0] for target in targets])
    rows = loaded.embed(target_ids).to("cpu", states.hidden.dtype)
    return Representations(states.hidden, states.final_norm, rows, target_ids)


def forward(
    prompts: Sequence[Sequence[int]],
    loaded: LoadedModel,
    batch_size: int = 16,
    progress: bool | str | tqdm = True,
) -> States:
    """:func:`collect` of prompts as token ids, which need no target."""
    if not prompts:
        raise InputError("There are no examples to run through the model.")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    blocks = len(loaded.blocks)
    dtype = torch.float64 if loaded.model.dtype == torch.float64 else torch.float32
    hidden = torch.empty(blocks + 1, len(prompts), loaded.width, dtype=dtype)
    final_norm = torch.empty(len(prompts), loaded.width, dtype=dtype)

    def run(index: list[int]) -> None:
        ids, mask = pad([prompts[i] for i in index], loaded)
        last = mask.sum(-1) - 1
        rows = torch.arange(len(index))

        def pick(state: Tensor) -> Tensor:
            return state[rows.to(state.device), last.to(state.device)]

        with captured(loaded, pick) as states:
            loaded.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        for layer in range(blocks + 1):
            hidden[layer, index] = states[layer][0].to("cpu", dtype)
        final_norm[index] = states[blocks + 1][0].to("cpu", dtype)

    shared = isinstance(progress, tqdm)
    with progress_bar("hidden states", not shared and progress, len(prompts)) as bar, torch.inference_mode():
        work_through(order, batch_size, run, progress if shared else bar)
    require_finite([*hidden, final_norm], loaded, range(len(prompts)))
    return States(hidden, final_norm)


def encode(loaded: LoadedModel, example: Example) -> tuple[list[int], list[int]]:
    """Token ids of an example's prompt and of its target.

    The prompt has the special tokens that its tokenizer adds by default. The target's tokens are those that follow when
    both are encoded as one text, so that they are what the model would read; where the tokenizer would merge the two
    across their border, the target is encoded by itself.
    """
    prompt, target = (list(ids) for ids in _tokens(loaded.tokenizer, example.prompt, example.target))
    if not prompt or not target:
        raise InputError(f"The prompt {example.prompt!r} or its target {example.target!r} has no tokens.")
    if loaded.context is not None and len(prompt) > loaded.context:
        raise InputError(
            f"A prompt has {len(prompt)} tokens, but the context of {loaded.name!r} is {loaded.context}: shorten or "
            f"drop it (it begins {example.prompt[:40]!r})."
        )
    return prompt, target


def encode_whole(loaded: LoadedModel, examples: Sequence[Example]) -> list[tuple[list[int], list[int]]]:
    """:func:`encode` of each example, whose prompt and target must fit the model's context together."""
    encoded = [encode(loaded, example) for example in examples]
    longest = max((len(prompt) + len(target) for prompt, target in encoded), default=0)
    if loaded.context is not None and longest > loaded.context:
        raise InputError(
            f"A prompt and its target have {longest} tokens, but the context of {loaded.name!r} is {loaded.context}: "
            "shorten or drop it."
        )
    return encoded


# A tokenizer is compared by identity; training, measuring and looking into the cache ask for the same texts.
@functools.lru_cache(maxsize=20_000)
def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, target: str) -> tuple[list[int], list[int]]:
    before = tokenizer(prompt).input_ids
    whole = tokenizer(prompt + target).input_ids
    if whole[: len(before)] == before:
        return before, whole[len(before) :]
    return before, tokenizer(target, add_special_tokens=False).input_ids


def pad(sequences: Sequence[Sequence[int]], loaded: LoadedModel) -> tuple[Tensor, Tensor]:
    """Sequences of token ids as one tensor, padded on the right, and its attention mask; both of shape (N, length)."""
    length = max(len(ids) for ids in sequences)
    # What stands in the padding is never read: the mask hides it and causality keeps it after the last token.
    ids = torch.zeros(len(sequences), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids.to(loaded.device), mask.to(loaded.device)


@contextlib.contextmanager
def captured(loaded: LoadedModel, pick: Callable[[Tensor], Tensor]) -> Iterator[list[list[Tensor]]]:
    """Within this context, keep what ``pick`` takes from the states of every forward pass.

    ``pick`` is given the states of one layer, shape (B, length, d), while the pass goes on. There is one list per layer
    with an entry per forward pass: list 0 is of the embedding output, list l of block l's output, the last one of the
    final norm's. The hooks are removed at the end, also when the body raises.
    """
    states: list[list[Tensor]] = [[] for _ in range(len(loaded.blocks) + 2)]

    def keep(layer: int) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            states[layer].append(pick(output[0] if isinstance(output, tuple) else output))

        return hook

    def keep_input(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(0)(None, None, args[0] if args else kwargs["hidden_states"])

    handles = [loaded.blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True)]
    handles += [block.register_forward_hook(keep(layer)) for layer, block in enumerate(loaded.blocks, 1)]
    handles.append(loaded.final_norm.register_forward_hook(keep(len(loaded.blocks) + 1)))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def require_finite(states: Iterable[Tensor], loaded: LoadedModel, examples: Sequence[int]) -> None:
    """Refuse states that are not finite: those of every layer and, last, after the final norm, shape (B, ..., d)."""
    for layer, state in enumerate(states):
        if bool((bad := ~state.isfinite().all(-1)).any()):
            row, *step = bad.nonzero()[0].tolist()
            where = f"layer {layer}" if layer <= len(loaded.blocks) else "the final norm"
            raise InputError(
                f"Model {loaded.name!r} gives a NaN or infinite state at {where} for example {examples[row]}"
                f"{f' at step {step[0] + 1}' if step else ''}: load it in a wider dtype, or check its weights."
            )
