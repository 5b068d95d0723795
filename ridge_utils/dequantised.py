"""Models in GGUF files, as llama.cpp and Ollama have them: dequantised once, and kept in the cache as safetensors.

transformers reads them, but leaves out some of what a file says, without a word; that is set here, and what cannot be
is refused. Each of the architectures was compared with llama.cpp itself, token by token.
"""

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from accelerate.utils import get_max_memory
from tokenizers import Tokenizer, normalizers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    TokenizersBackend,
)
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ridge_utils import cache, embedded, names, weights
from ridge_utils.errors import InputError, StorageError, named, shown

log = logging.getLogger(__name__)

#: Architectures whose files are read.
ARCHITECTURES = ("gemma3", "llama", "qwen2")

#: How a file may say that its tokenizer cuts a text before merging (``tokenizer.ggml.pre``), and whether that puts a
#: token before it where the file does not say. transformers takes GPT-2's way for all that it does not know. SmolLM's
#: cuts each digit off, which makes no difference: no token of its vocabulary joins one with anything.
_CUTS = {"gpt-2": False, "smollm": False, "qwen2": False, "deepseek-r1-qwen": True}
_CUTS |= dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "smaug-bpe", "tekken"), True)
#: Those of Qwen compose characters first, as the published tokenizers do.
_COMPOSED = ("qwen2",)
#: Tokens with a part to play, by transformers' name and the file's.
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
#: Holds what rotary frequencies are divided by.
_FREQUENCIES = "rope_freqs.weight"
#: Bytes that reading takes beside the weights: the vocabulary as Python's objects.
_BESIDE = 2 * 10**9
#: A text with digits, spaces, decomposed characters, another script and no character of the vocabulary.
_SAMPLE = "  In 1987, it's 3+4 = 7;\n\n\tcafe\u0301 caf\u00e9 \u6771\u4eac \U0001f642 nephew nephew's"


def folder(name: str, fetch: bool = False) -> tuple[Path, str]:
    """Folder in the cache with the model of a GGUF file, made where it is missing or damaged; and the file's SHA-256.

    Args:
        name: an embedded model's, or the path of a file.
        fetch: get an embedded model's file where that needs a network.

    An InputError says what the file is, if it is no whole GGUF file of a model of one of :data:`ARCHITECTURES`, or that
    the embedded model is not set up.
    """
    if name in embedded.MODELS:
        if not fetch:
            embedded.require(name)
        key, sha256, file = name, embedded.MODELS[name].sha256, embedded.file(name, fetch)
    else:
        path = Path(name).expanduser()
        names.require_gguf(path)
        sha256 = cache.sha256(path)
        key = next((known for known, model in embedded.MODELS.items() if model.sha256 == sha256), "gguf")
        file = contextlib.nullcontext(path)
    target = embedded.entry(key, sha256)
    with cache.lock(target):
        problem = cache.damage(target)
        if problem:
            if target.exists():
                log.warning("The cached model in %s is damaged (%s); it is made again.", target, problem)
            with file as path:
                _convert(path, target, sha256)
    return target, sha256


def _convert(path: Path, target: Path, sha256: str) -> None:
    log.info("Dequantising %s into %s (once; 20 seconds to some minutes).", named(path.name), target)
    with tempfile.TemporaryDirectory() as empty, cache.writing(target) as made, weights.quiet():
        # Under a name of its own in an empty folder: transformers takes what lies beside a file for its tokenizer's,
        # and a file of the same name in the working folder for the file.
        link = Path(empty, "model.gguf")
        link.symlink_to(path.resolve())
        where = {"pretrained_model_name_or_path": empty, "gguf_file": str(link), "trust_remote_code": False}
        try:
            said = _Said(path, gguf.GGUFReader(link))
            config, tokenizer, held = _config(said, where), _tokenizer(said, link), said.parameters
            _require_room(said, target.parent)
            del said  # a vocabulary as a reader holds it takes the memory of a small model
            model, report = AutoModelForCausalLM.from_pretrained(
                **where, config=config, dtype=torch.float32, output_loading_info=True
            )
        except (InputError, StorageError, MemoryError):
            raise
        except Exception as error:  # of a file that is cut off or damaged each library says so in another way
            reason = named(" ".join(str(error).split()) or type(error).__name__)
            raise InputError(
                f"{named(str(path))} is no whole GGUF file of a model ({reason}): get it again."
            ) from error
        weights.check_report(str(path), report)
        if (taken := sum(weight.numel() for weight in model.parameters())) != held:
            # What has no place transformers leaves out silently.
            raise InputError(f"{named(str(path))} holds {held:,} weights, of which transformers takes {taken:,}.")
        # The weights are plain floats now; transformers refuses to save a model that still calls itself quantised.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        _require_same_tokens(path, tokenizer, made)
        if cache.sha256(path) != sha256:
            raise InputError(f"{named(str(path))} was changed while it was read: start again.")


class _Said:
    """What a GGUF file says of its model."""

    def __init__(self, path: Path, reader: gguf.GGUFReader) -> None:
        self.path, self.reader = path, reader
        self.architecture = self.get("general.architecture")
        self.shapes = {tensor.name: [int(n) for n in tensor.shape] for tensor in reader.tensors}
        kind = self.get("general.type", "model")
        if kind != "model" or not self.shapes:
            self.refuse(f"is no model but {'a vocabulary' if kind == 'model' else f'of type {shown(kind)}'}")
        if self.architecture not in ARCHITECTURES:
            self.refuse(
                f"has the architecture {shown(self.architecture)}, and GGUF files are read of "
                f"{', '.join(ARCHITECTURES)} only: take the model's folder or its Hub id"
            )
        if self.get("split.count", 0) > 1:
            self.refuse(f"is one of {self.get('split.count')} parts: join them with `llama-gguf-split --merge`")
        if self.about("attention.causal", True) is False:
            self.refuse("is an encoder: its states depend on the tokens behind them")
        # A list as long is made of it before a weight is read.
        if not 1 <= self.about("block_count", 0) <= len(self.shapes):
            self.refuse(f"asks for {self.about('block_count')} blocks, but holds {len(self.shapes)} tensors")

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key."""
        found = self.reader.get_field(key)
        return default if found is None else found.contents()

    def about(self, key: str, default: Any = None) -> Any:
        """The value of a key of its architecture."""
        return self.get(f"{self.architecture}.{key}", default)

    def refuse(self, what: str) -> None:
        raise InputError(f"{named(str(self.path))} {what}.")

    def numbers(self, tensor: str) -> Tensor:
        """A tensor's values."""
        found = next(one for one in self.reader.tensors if one.name == tensor)
        return torch.from_numpy(gguf.dequantize(found.data, found.tensor_type).copy())

    @property
    def parameters(self) -> int:
        """How many weights it holds."""
        return sum(torch.Size(shape).numel() for name, shape in self.shapes.items() if name != _FREQUENCIES)


def _require_room(said: _Said, place: Path) -> None:
    size = 4 * said.parameters
    if size + _BESIDE > (free := get_max_memory()["cpu"]):
        said.refuse(
            f"needs about {(size + _BESIDE) / 1e9:.0f} GB of memory to be dequantised, but {free / 1e9:.0f} GB are "
            "free: take a smaller model, or its folder or Hub id, which can be spread with device=balanced"
        )
    if size > (left := shutil.disk_usage(place).free):
        raise StorageError(
            f"The dequantised weights of {named(str(said.path))} take {size / 1e9:.1f} GB, but {left / 1e9:.1f} GB are "
            f"free in {place}: make room, or name another folder with {cache.ENVIRONMENT_VARIABLE}."
        )


def _config(said: _Said, where: Mapping[str, Any]) -> PretrainedConfig:
    """transformers' configuration, with what it leaves out of the file."""
    config = AutoConfig.from_pretrained(**where)
    shapes = {name: (shape, "F32") for name, shape in said.shapes.items()}
    weights.check_config(str(said.path), config, shapes)
    head = said.about("attention.key_length", config.hidden_size // config.num_attention_heads)
    if said.about("rope.dimension_count", head) != head:
        said.refuse("rotates a part of each head only, which is not read")
    if said.architecture == "gemma3":
        # The file has no word for most of these; llama.cpp knows them, by the model's depth where sizes differ.
        config.query_pre_attn_scalar = (
            config.hidden_size // config.num_attention_heads if config.num_hidden_layers == 62 else head
        )
        every = said.about("attention.sliding_window_pattern", 6)
        kinds = ("sliding_attention", "full_attention")
        config.layer_types = [kinds[block % every == 0] for block in range(1, config.num_hidden_layers + 1)]
        config.rope_parameters = {
            "sliding_attention": {"rope_type": "default", "rope_theta": said.about("rope.freq_base_swa", 10_000.0)},
            "full_attention": _rope(said, head),
        }
    else:
        config.rope_parameters = _rope(said, head)
        if said.architecture == "llama" and getattr(config, "sliding_window", None):
            config.sliding_window = None  # of Mistral's class; llama.cpp has none in this architecture
    return config


def _rope(said: _Said, head: int) -> dict[str, Any]:
    """Rotary frequencies; transformers reads their base alone."""
    theta = said.about("rope.freq_base", 10_000.0)
    plain = {"rope_type": "default", "rope_theta": theta}
    kind, factor = said.about("rope.scaling.type", "none"), said.about("rope.scaling.factor", 1.0)
    divided = said.numbers(_FREQUENCIES) if _FREQUENCIES in said.shapes else torch.ones(1)
    if kind == "none" and bool((divided != 1).any()):
        # As llama.cpp's converter computes it from Llama 3's configuration, whose other numbers are always these.
        given = plain | {"rope_type": "llama3", "factor": divided.max().item(), "low_freq_factor": 1.0}
        given |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        ours = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(head_dim=head, rope_parameters=given), torch.device("cpu"))[0]
        bare = theta ** -(torch.arange(0, head, 2) / head)
        if divided.shape == ours.shape and torch.allclose(bare / divided, ours, rtol=1e-3):
            return given
    elif bool((divided == 1).all()):
        if kind == "none" or factor in (0, 1):
            return plain
        if kind == "linear":
            return plain | {"rope_type": "linear", "factor": factor}
        if kind == "yarn" and (before := said.about("rope.scaling.original_context_length")):
            return plain | {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": before}
    said.refuse(f"scales its rotary frequencies in a way that is not read ({shown(kind)})")
    raise AssertionError


def _tokenizer(said: _Said, link: Path) -> PreTrainedTokenizerBase:
    kind, cut = said.get("tokenizer.ggml.model"), said.get("tokenizer.ggml.pre", "none")
    if kind not in ("gpt2", "llama") or (kind == "gpt2" and cut not in _CUTS):
        said.refuse(f"has a tokenizer that is not read (tokenizer.ggml.model {shown(kind)}, .pre {shown(cut)})")
    if kind == "llama" and (said.architecture == "gemma3") == said.get("tokenizer.ggml.add_space_prefix", True):
        said.refuse("has a tokenizer that is not read (tokenizer.ggml.add_space_prefix)")
    begins = said.get("tokenizer.ggml.add_bos_token", kind == "llama" or _CUTS[cut])
    architecture, found, _ = get_gguf_tokenizer(str(link))
    tokens = found["tokens"]
    state = json.loads(convert_gguf_tokenizer(architecture, found)[0].to_str())
    # transformers adds the special tokens of GPT-2 to a vocabulary that lacks them, behind the model's last row.
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < len(tokens)]
    backend = Tokenizer.from_str(json.dumps(state))
    if kind == "gpt2" and cut in _COMPOSED:
        backend.normalizer = normalizers.NFC()
    ids = {key: said.get(f"tokenizer.ggml.{name}_token_id") for key, name in _SPECIAL.items()}
    plain = TokenizersBackend(
        tokenizer_object=backend,
        **{key: tokens[number] for key, number in ids.items() if number is not None},
        chat_template=said.get("tokenizer.chat_template"),
        add_bos_token=begins,
    )
    if (plain("a").input_ids[0] == plain.bos_token_id) != begins:
        said.refuse("has a tokenizer that transformers reads wrongly: the token before a text is not the file's")
    return plain


def _require_same_tokens(path: Path, tokenizer: PreTrainedTokenizerBase, made: Path) -> None:
    again = TokenizersBackend.from_pretrained(made, local_files_only=True, trust_remote_code=False)
    if again(_SAMPLE).input_ids != tokenizer(_SAMPLE).input_ids:
        raise InputError(f"The tokenizer of {named(str(path))} is another one once it is stored: take its Hub id.")
