"""Tiny random models written as GGUF files by the gguf package, as llama.cpp's converter writes large ones."""

from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

_SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_CONFIGS = {
    "llama": transformers.LlamaConfig,
    "qwen2": transformers.Qwen2Config,
    "gemma3": transformers.Gemma3TextConfig,
}


def model(architecture: str, **changed: Any) -> PreTrainedModel:
    """A seeded random model with norms and biases that are not 1 and 0."""
    given = dict(_SHAPE)
    if architecture == "gemma3":
        given |= {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(_CONFIGS[architecture](**(given | changed)), dtype=torch.float32)
        for weight in made.parameters():
            scale = 0.3 if weight.ndim == 1 else 0.15
            weight.data.add_(scale * torch.randn(weight.shape))
    return made.eval()


def write(path: Path, made: PreTrainedModel, without: tuple[str, ...] = (), **said: Any) -> Path:
    """Write a model to ``path``; ``said`` are further keys of its architecture, with ``__`` for a dot, or such of none
    that begin with ``__``. The tokenizer is one token a byte, or of gemma3 one a character.
    """
    config = made.config
    architecture = config.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if architecture == "gemma3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_sliding_window(config.sliding_window)
        _add_characters(writer)
    else:
        _add_bytes(writer, "qwen2" if architecture == "qwen2" else "llama-bpe")
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in said.items():
        name = key[2:] if key.startswith("__") else f"{architecture}.{key}"
        kinds[type(value)](name.replace("__", "."), value)
    _add_tensors(writer, made, architecture, without)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tensors(writer: gguf.GGUFWriter, made: PreTrainedModel, architecture: str, without: tuple[str, ...]) -> None:
    (kind,) = (key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    known = gguf.get_tensor_name_map(kind, made.config.num_hidden_layers)
    for name, weight in made.named_parameters():
        stem, _, ending = name.rpartition(".")
        if (called := known.get_name(stem)) in without:
            continue
        values = weight.detach()
        if architecture == "llama" and called.endswith(("attn_q", "attn_k")):
            heads = made.config.num_attention_heads if called.endswith("q") else made.config.num_key_value_heads
            # Pairs that are rotated together stand side by side in llama.cpp.
            values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if architecture == "gemma3" and "norm" in called:
            values = values + 1
        writer.add_tensor(f"{called}.{ending}", values.contiguous().numpy())
    divided = getattr(made, "rope_freqs", None)
    if divided is not None:
        writer.add_tensor("rope_freqs.weight", divided.float().numpy())


def _add_bytes(writer: gguf.GGUFWriter, cut: str) -> None:
    from tokenizers import pre_tokenizers

    tokens = ["<|pad|>", "<|end|>", "<|start|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġn"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * 257)
    writer.add_token_merges(["Ġ n"])
    _add_special(writer, cut == "llama-bpe")


def _add_characters(writer: gguf.GGUFWriter) -> None:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(224))]
    tokens += ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁n", "  ", "0", "1", "2"]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([3, 3, 3, 3] + [6] * 224 + [1] * 32)
    writer.add_add_space_prefix(False)
    writer.add_unk_token_id(3)
    _add_special(writer, True)


def _add_special(writer: gguf.GGUFWriter, begins: bool) -> None:
    writer.add_add_bos_token(begins)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
