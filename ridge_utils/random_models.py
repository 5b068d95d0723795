"""Tiny models with seeded random weights, for tests and as a null of training: no download, any shape."""

import logging
import re
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import get_max_memory
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from ridge_utils.errors import InputError, shown
from ridge_utils.names import PREFIX, split

_ENDS: dict[str, Any] = {"bos_token_id": 256, "eos_token_id": 256}
_CONTEXT = 1024
_HEAD = 16  # width of an attention head up to a width of 128; above it, heads are 64 wide where that divides it


def _shape(blocks: int, width: int) -> dict[str, Any]:
    heads = width // (64 if width > 128 and width % 64 == 0 else _HEAD)
    return {
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2 if heads % 2 == 0 else heads,
        "vocab_size": 260,
        "intermediate_size": 2 * width,
        "max_position_embeddings": _CONTEXT,
        **_ENDS,
    }


def _gpt2(blocks: int, width: int) -> GPT2Config:
    heads = _shape(blocks, width)["num_attention_heads"]
    return GPT2Config(n_embd=width, n_head=heads, n_layer=blocks, n_positions=_CONTEXT, vocab_size=260, **_ENDS)


def _mamba(blocks: int, width: int) -> MambaConfig:
    # transformers advises CUDA kernels, which models of this size can do without.
    logging.getLogger("transformers.integrations.hub_kernels").addFilter(_is_no_advice)
    # A block of GPT-2 has 12 width^2 weights and more; with these two numbers a block of Mamba is as large.
    return MambaConfig(hidden_size=width, num_hidden_layers=blocks, expand=3, state_size=8, vocab_size=260, **_ENDS)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return "falling back to its reference PyTorch implementation" not in record.getMessage()


_CONFIGS: dict[str, Callable[[int, int], PretrainedConfig]] = {
    "gpt2": _gpt2,
    "qwen2": lambda blocks, width: Qwen2Config(**_shape(blocks, width), tie_word_embeddings=True),
    "llama": lambda blocks, width: LlamaConfig(**_shape(blocks, width)),
    "mamba": _mamba,
}
_DEFAULT = (6, 64)


def random_shape(name: str) -> tuple[str, int, int] | None:
    """Architecture, blocks and width that the name of a random model asks for, or None for any other name."""
    match = re.fullmatch(PREFIX + r"([a-z0-9]+)(?:-([0-9]{1,18})x([0-9]{1,18}))?", split(name)[0])
    if not match:
        return None
    blocks, width = (int(match[2]), int(match[3])) if match[2] else _DEFAULT
    return match[1], blocks, width


def build(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The random model of a name and its tokenizer; the same weights every time."""
    shape = random_shape(name)
    if shape is None or shape[0] not in _CONFIGS:
        known = ", ".join(PREFIX + k for k in _CONFIGS)
        raise InputError(
            f"Unknown random model {shown(name)}; choose one of {known}, with blocks and width behind a hyphen "
            "if you like, as in random:gpt2-12x256."
        )
    kind, blocks, width = shape
    needed = 4 * (12 * blocks * width**2 + 260 * width)
    if needed > (free := get_max_memory()["cpu"]):
        raise InputError(
            f"The random model {shown(name)} needs about {needed / 1e9:,.1f} GB, but {free / 1e9:,.1f} GB of memory "
            "are free: ask for fewer blocks or a smaller width."
        )
    if not 1 <= blocks <= 1000 or width < _HEAD or width % _HEAD:
        raise InputError(
            f"A random model needs 1 to 1000 blocks and a width that is a multiple of {_HEAD}, but {shown(name)} "
            f"asks for {blocks} and {width}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(_CONFIGS[kind](blocks, width), dtype=dtype)
    return model, byte_tokenizer()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer without a download: one token a byte, and one each for padding and end of text."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
