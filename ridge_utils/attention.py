"""Attention to signal tokens: where the last prompt token looks in each block (paper, Figure 7 and Table 2).

Layer l, from 1 to the number of blocks, is the attention inside block l, averaged over its heads. Row t of a map says
how token t spreads a mass of 1 over tokens 1 to t. The weights are transformers' own ``output_attentions``; they need
the eager implementation of attention, as the faster ones never hold them.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ridge_utils.batches import progress_bar, work_through
from ridge_utils.errors import InputError
from ridge_utils.models import LoadedModel, quiet
from ridge_utils.representations import encode, pad
from ridge_utils.tasks import Example

#: A batch's attention maps, of all blocks and heads, take at most this many bytes, or the batch is one prompt.
_MAP_BYTES = 2**28


@dataclass(frozen=True)
class AttentionShares:
    """Attention mass that the last prompt token of N examples gives to some tokens, on the CPU.

    The shares are between 0 and 1 and may overlap: the first or the last token can be signal too.
    """

    #: mass on all signal tokens together, shape (blocks, N), float64
    signal: Tensor
    #: mass of the last token on itself, shape (blocks, N), float64
    last: Tensor
    #: mass on the first token, the usual attention sink, shape (blocks, N), float64
    first: Tensor
    #: prompt tokens, shape (N,), int64
    tokens: Tensor
    #: signal tokens among them, shape (N,), int64
    signal_tokens: Tensor
    #: whether the first token is signal, so that ``signal`` holds all of ``first``, shape (N,), bool
    first_is_signal: Tensor

    @property
    def signal_after_first(self) -> Tensor:
        """``signal`` without the first token's part, shape (blocks, N), float64.

        Many models park attention on the first token whatever it says. Where that token is signal, ``signal`` rises
        with it, and this share does not.
        """
        return self.signal - self.first * self.first_is_signal

    @property
    def chance_after_first(self) -> Tensor:
        """What ``signal_after_first`` is when attention is uniform, shape (N,), float64."""
        return (self.signal_tokens - self.first_is_signal.long()).double() / self.tokens

    def __len__(self) -> int:
        """Number of examples N."""
        return len(self.tokens)

    def select(self, index: Tensor | Sequence[int]) -> "AttentionShares":
        """The examples at ``index``, in that order."""
        index = torch.as_tensor(index)
        return AttentionShares(*(getattr(self, field.name)[..., index] for field in fields(self)))


def shares(
    loaded: LoadedModel, examples: Sequence[Example], batch_size: int = 8, progress: bool | str = True
) -> AttentionShares:
    """How much of its attention the last prompt token gives to signal tokens, to itself and to the first token.

    Source: the paper, Table 2. Prompts are padded on the right as in
    :func:`ridge_utils.representations.collect`, so a prompt's shares do not depend on its batch; those of a
    half-precision model have its rounding errors.
    """
    if not examples:
        raise InputError("There are no examples to run through the model.")
    prompts = [encode(loaded, example)[0] for example in examples]
    signals = [signal_mask(loaded, example) for example in examples]
    for number, (example, signal) in enumerate(zip(examples, signals, strict=True)):
        if not bool(signal.any()):
            raise InputError(
                f"Example {number} has no signal token: its task must mark the signal in signal_spans, which are "
                f"{example.signal_spans} here (the prompt begins {example.prompt[:40]!r})."
            )
    tokens = torch.tensor([len(prompt) for prompt in prompts])
    on_signal, on_last, on_first = torch.empty(3, len(loaded.blocks), len(prompts), dtype=torch.float64)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)

    def attend(index: list[int]) -> None:
        ids, mask = pad([prompts[i] for i in index], loaded)
        signal = pad_sequence([signals[i] for i in index], batch_first=True)
        row, last = torch.arange(len(index)), tokens[index] - 1
        for layer, weights in enumerate(_weights(loaded, ids, mask)):
            mass = weights[row.to(weights.device), :, last.to(weights.device)].to("cpu", torch.float64).mean(1)
            on_signal[layer, index] = (mass * signal).sum(-1)
            on_last[layer, index] = mass[row, last]
            on_first[layer, index] = mass[:, 0]

    with progress_bar("attention", progress, len(prompts)) as bar, eager(loaded):
        work_through(order, batch_size, attend, bar, largest=lambda i: _fitting(loaded, len(prompts[i])))
    signal_tokens = torch.stack([signal.sum() for signal in signals])
    first_is_signal = torch.stack([signal[0] for signal in signals])
    return AttentionShares(on_signal, on_last, on_first, tokens, signal_tokens, first_is_signal)


def maps(loaded: LoadedModel, example: Example, layers: Sequence[int]) -> Tensor:
    """Attention maps of one prompt of T tokens, averaged over heads (paper, Figure 7).

    Of the blocks ``layers``, numbered from 1: shape (len(layers), T, T), float64; row t is what token t attends to.
    """
    prompt, _ = encode(loaded, example)
    with eager(loaded):
        weights = _weights(loaded, *pad([prompt], loaded))
    return torch.stack([weights[layer - 1][0].to("cpu", torch.float64).mean(0) for layer in layers])


def tokens(loaded: LoadedModel, example: Example) -> list[str]:
    """The text of each prompt token, with its leading space if it has one; a special token's name."""
    encoding = _offsets(loaded, example)
    names = loaded.tokenizer.convert_ids_to_tokens([index for index, _ in encoding])
    return [example.prompt[start:end] or name for (_, (start, end)), name in zip(encoding, names, strict=True)]


def signal_mask(loaded: LoadedModel, example: Example) -> Tensor:
    """Which prompt tokens are signal: those that share a character other than white space with a signal span.

    So a token that only brings the space before a span is no signal, and neither is a special token. The last prompt
    token is signal where a span says so. Shape (T,), bool.
    """

    def overlaps(start: int, end: int) -> bool:
        return any(example.prompt[max(start, a) : min(end, b)].strip() for a, b in example.signal_spans)

    return torch.tensor([overlaps(start, end) for _, (start, end) in _offsets(loaded, example)], dtype=torch.bool)


@contextlib.contextmanager
def eager(loaded: LoadedModel) -> Iterator[None]:
    """Let the model compute attention weights inside a ``with`` block; its own implementation comes back after it."""
    model = loaded.model
    implementation = model.config._attn_implementation
    try:
        # An architecture that cannot switch says so in a warning only, and keeps what it has.
        with quiet():
            model.set_attn_implementation("eager")
        if model.config._attn_implementation != "eager":
            raise InputError(
                f"Model {loaded.name!r} ({type(model).__name__}) cannot be switched from {implementation!r} to eager "
                "attention, which its attention weights need: choose another model."
            )
        yield
    finally:
        with quiet():
            model.set_attn_implementation(implementation)


def _weights(loaded: LoadedModel, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Attention weights of each block, shape (N, heads, T, T), for token ids and a mask of shape (N, T)."""
    with torch.inference_mode():
        output = loaded.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False, output_attentions=True)
    weights = tuple(w for w in getattr(output, "attentions", None) or () if w is not None)
    square = (ids.shape[1], ids.shape[1])
    # RWKV calls something else "attentions", and hybrids have attention in some blocks only.
    if len(weights) != len(loaded.blocks) or any(w.ndim != 4 or w.shape[-2:] != square for w in weights):
        raise InputError(
            f"Model {loaded.name!r} ({type(loaded.model).__name__}) does not give attention weights in each of its "
            f"{len(loaded.blocks)} blocks: choose a model whose blocks all have attention."
        )
    for layer, layer_weights in enumerate(weights, 1):
        if not bool(layer_weights.isfinite().all()):
            raise InputError(
                f"Model {loaded.name!r} gives NaN or infinite attention weights at layer {layer}: load it in a wider "
                "dtype, or check its weights."
            )
    return weights


def _fitting(loaded: LoadedModel, length: int) -> int:
    """How many prompts of ``length`` tokens a batch may hold, at least 1."""
    heads = getattr(loaded.model.config.get_text_config(), "num_attention_heads", 1)
    return max(1, _MAP_BYTES // (len(loaded.blocks) * heads * length**2 * loaded.model.dtype.itemsize))


def _offsets(loaded: LoadedModel, example: Example) -> list[tuple[int, tuple[int, int]]]:
    """Each prompt token's id and its character range, which may begin at the space before a word."""
    encoding = loaded.tokenizer(example.prompt, return_offsets_mapping=True)
    return list(zip(encoding.input_ids, encoding.offset_mapping, strict=True))
