"""Hidden states over decoding steps: along the model's own greedy continuation, or along the reference text."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig

from ridge_utils.batches import progress_bar, work_through
from ridge_utils.errors import InputError
from ridge_utils.models import LoadedModel, quiet
from ridge_utils.representations import captured, encode, pad, require_finite
from ridge_utils.tasks import Example


@dataclass(frozen=True)
class Continuations:
    """States over the decoding steps of N examples, on the CPU; float32, or float64 from a float64 model.

    The state of a step is the one at the position that predicts the step's token: the last prompt token's at the first
    step, then that of the token before.
    """

    #: Z_0 (embedding output) to Z_L (last block's output) and, last, Z_L after the final norm, shape
    #: (blocks + 2, N, steps, d)
    states: Tensor
    #: tokens of the continuation, shape (N, steps), int64
    token_ids: Tensor
    #: input-embedding rows of these tokens, shape (N, steps, d)
    targets: Tensor

    @property
    def hidden(self) -> Tensor:
        """Z_0 to Z_L before the final norm, shape (blocks + 1, N, steps, d)."""
        return self.states[:-1]

    @property
    def final_norm(self) -> Tensor:
        """Z_L after the final norm, shape (N, steps, d)."""
        return self.states[-1]

    def __len__(self) -> int:
        """Number of examples N."""
        return len(self.token_ids)


def greedy(
    loaded: LoadedModel, examples: Sequence[Example], steps: int = 50, batch_size: int = 16, progress: bool | str = True
) -> Continuations:
    """Let the model continue each prompt by exactly ``steps`` tokens, always the likeliest one.

    Decoding is transformers' own ``generate`` with its key-value cache. The end token is suppressed, so that every
    continuation has the same length. The checkpoint's own settings (a temperature, a repetition penalty, ...) are put
    aside, but for what it calls an end token. Prompts are sorted by length and padded on the left, with masks and
    positions that leave the padding out; so neither the batch size nor the company of a prompt changes anything beyond
    rounding, which can decide between tokens that are equally likely.

    The result takes (blocks + 2) N steps d numbers of 4 bytes; beside it, one batch is in memory.
    """
    prompts = [prompt for prompt, _ in _encode(loaded, examples, steps, batch_size)]
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=steps,
        min_new_tokens=steps,
        eos_token_id=end_tokens(loaded),
        pad_token_id=0,  # never read: the mask hides it
    )

    def decode(index: list[int]) -> tuple[Tensor, Tensor]:
        ids, mask = (part.flip(1) for part in pad([prompts[i][::-1] for i in index], loaded))
        # A copy, since a view would keep the states of the whole prompt in memory.
        with (
            captured(loaded, lambda state: state[:, -1:].clone().to(loaded.device)) as states,
            _without_own_settings(loaded),
            quiet(),
        ):
            whole = loaded.model.generate(ids, attention_mask=mask, generation_config=config)
        return torch.stack([torch.cat(passes, dim=1) for passes in states]), whole[:, ids.shape[1] :]

    return _gather(loaded, prompts, steps, batch_size, progress_bar("greedy decoding", progress, len(prompts)), decode)


def reference(
    loaded: LoadedModel, examples: Sequence[Example], steps: int = 50, batch_size: int = 16, progress: bool | str = True
) -> Continuations:
    """Lead the model along the first ``steps`` tokens of each example's target (teacher forcing).

    One forward pass over a prompt and its target gives the states of all steps. Padding is on the right, as in
    :func:`ridge_utils.representations.collect`, and the head is not applied.
    """
    encoded = _encode(loaded, examples, steps, batch_size)
    for number, (example, (_, target)) in enumerate(zip(examples, encoded, strict=True)):
        if len(target) < steps:
            raise InputError(
                f"The target of example {number} has {len(target)} tokens, but {steps} steps need as many: take fewer "
                f"steps, or drop the example (its prompt begins {example.prompt[:40]!r})."
            )
    prompts = [prompt for prompt, _ in encoded]
    tokens = torch.tensor([target[:steps] for _, target in encoded])

    def forward(index: list[int]) -> tuple[Tensor, Tensor]:
        ids, mask = pad([prompts[i] + tokens[i].tolist() for i in index], loaded)
        first = torch.tensor([[len(prompts[i]) - 1] for i in index], device=ids.device)
        positions = first + torch.arange(steps, device=ids.device)
        rows = torch.arange(len(index), device=ids.device).unsqueeze(1)

        def pick(state: Tensor) -> Tensor:
            return state[rows.to(state.device), positions.to(state.device)].to(loaded.device)

        with captured(loaded, pick) as states:
            loaded.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        return torch.stack([only for (only,) in states]), tokens[index]

    return _gather(loaded, prompts, steps, batch_size, progress_bar("teacher forcing", progress, len(prompts)), forward)


def _gather(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    steps: int,
    batch_size: int,
    bar: tqdm,
    run: Callable[[list[int]], tuple[Tensor, Tensor]],
) -> Continuations:
    """Put together what ``run`` gives for the prompts of each batch: states (blocks + 2, B, steps, d) and tokens."""
    dtype = torch.float64 if loaded.model.dtype == torch.float64 else torch.float32
    states = torch.empty(len(loaded.blocks) + 2, len(prompts), steps, loaded.width, dtype=dtype)
    token_ids = torch.empty(len(prompts), steps, dtype=torch.long)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))

    def keep(index: list[int]) -> None:
        of_batch, tokens = run(index)
        require_finite(of_batch, loaded, index)
        states[:, index] = of_batch.to("cpu", dtype)
        token_ids[index] = tokens.cpu()

    with bar, torch.inference_mode():
        work_through(order, batch_size, keep, bar)
    targets = loaded.embed(token_ids).to("cpu", dtype)
    return Continuations(states, token_ids, targets)


def _encode(
    loaded: LoadedModel, examples: Sequence[Example], steps: int, batch_size: int
) -> list[tuple[list[int], list[int]]]:
    if not examples:
        raise InputError("There are no examples to run through the model.")
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, but is {value}.")
    encoded = [encode(loaded, example) for example in examples]
    for number, (prompt, _) in enumerate(encoded):
        if loaded.context is not None and len(prompt) + steps > loaded.context:
            raise InputError(
                f"Example {number} has a prompt of {len(prompt)} tokens, which with {steps} steps exceeds the context "
                f"of {loaded.name!r}, {loaded.context}: shorten or drop it, or take fewer steps."
            )
    return encoded


def end_tokens(loaded: LoadedModel) -> int | list[int] | None:
    """The checkpoint's end tokens, of which a chat model has several, else the tokenizer's."""
    end = getattr(loaded.model.generation_config, "eos_token_id", None)
    return loaded.tokenizer.eos_token_id if end is None else end


@contextlib.contextmanager
def _without_own_settings(loaded: LoadedModel) -> Iterator[None]:
    """Put the checkpoint's generation settings aside: generate fills with them whatever its caller leaves open."""
    settings = loaded.model.generation_config
    loaded.model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        loaded.model.generation_config = settings
