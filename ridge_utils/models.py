"""Decoder-only language models by name, and where their blocks, embedding and final norm are."""

import contextlib
import copy
import functools
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import align_module_device, get_balanced_memory
from huggingface_hub import errors as hub_errors
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TokenizersBackend

from ridge_utils import dequantised, embedded, names, weights
from ridge_utils.errors import InputError, named, shown
from ridge_utils.names import EMBEDDED, PREFIX, display_name, title  # noqa: F401
from ridge_utils.random_models import build, byte_tokenizer, random_shape  # noqa: F401
from ridge_utils.weights import quiet

log = logging.getLogger(__name__)

#: Ways to spread a model over several devices, of accelerate.
DEVICE_MAPS = ("balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in evaluation mode, its tokenizer, and the parts that a profile over depth needs."""

    #: the name that it was loaded by
    name: str
    #: the whole model, with its language-modelling head
    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    #: the residual blocks, first to last
    blocks: nn.ModuleList = field(repr=False)
    #: the input embedding; row i of its weight belongs to token i
    embedding: nn.Embedding = field(repr=False)
    #: the norm between the last block and the head
    final_norm: nn.Module = field(repr=False)
    #: SHA-256 of the GGUF file that its weights were dequantised from; empty for any other model
    gguf_sha256: str = field(default="", repr=False)
    _hashed: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def device(self) -> torch.device:
        """Where the embedding is, and so where input ids must be sent."""
        device = self.embedding.weight.device
        # Weights that a model spread over devices keeps elsewhere are brought to where they are used.
        return torch.device(self.embedding._hf_hook.execution_device) if device.type == "meta" else device

    @property
    def is_spread(self) -> bool:
        """Whether its weights are on more than one device, or on none until they are used."""
        return len({weight.device for weight in self.model.parameters()} | {self.device}) > 1

    @property
    def width(self) -> int:
        """Dimension d of the hidden states."""
        return self.embedding.weight.shape[1]

    @functools.cached_property
    def context(self) -> int | None:
        """Longest sequence in tokens, or None where the architecture sets no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def weights_sha256(self) -> str:
        """:func:`fingerprint` of its weights, hashed once and again only after one of them was replaced or written."""
        tensors = self.model.state_dict(keep_vars=True).values()
        if any(tensor.is_meta for tensor in tensors):  # they lie where accelerate keeps them, and tell nothing here
            return fingerprint(self.model)
        # torch counts how often a tensor was written to.
        written = [(id(tensor), tensor.data_ptr(), tensor._version) for tensor in tensors]
        if written != self._hashed.get("written"):
            self._hashed.update(written=written, sha256=fingerprint(self.model))
        return self._hashed["sha256"]

    def embed(self, token_ids: Tensor) -> Tensor:
        """Rows of the input embedding, shape (N, d), on its device."""
        with align_module_device(self.embedding):
            weight = self.embedding.weight.detach()
            return weight[token_ids.to(weight.device)]

    @contextlib.contextmanager
    def head(self) -> Iterator[nn.Module]:
        """Within this context, the language-modelling head, with its weights in place."""
        head = self.model.get_output_embeddings()
        with align_module_device(head):
            yield head

    def with_weights(self, folder: Path) -> "LoadedModel":
        """The same model with the weights saved in ``folder`` (a checkpoint)."""
        with quiet():
            model = weights.read(str(folder), self.model.dtype, local_files_only=True)
        return assemble(self.name, model.to(self.device), self.tokenizer)


def load(
    name: str,
    *,
    dtype: torch.dtype | str | None = None,
    device: str = "auto",
    max_memory: Mapping[int | str, int | str] | None = None,
) -> LoadedModel:
    """Load a decoder-only model.

    Args:
        name: ``"smollm2-135m"`` or another of :data:`ridge_utils.embedded.MODELS`; a Hub id such as ``"gpt2"`` or
            ``"Qwen/Qwen2.5-0.5B"``; a local folder, written with a separator (``"./gpt2"``); a GGUF file
            (``"gemma.gguf"``), whose weights are dequantised; or ``"random:gpt2"``, ``"random:qwen2"``,
            ``"random:llama"`` and ``"random:mamba"`` (without attention), tiny models with seeded random weights, whose
            shape may follow (``"random:gpt2-12x256"`` has 12 blocks of width 256). Any of them may end in ``[:k]``, for
            its first k blocks (:func:`truncate`). Code from a model's repository is never run, and weights are read
            from safetensors alone.
        dtype: of the weights, as ``torch.float32`` or ``"float32"``; float32 if not given.
        device: ``"auto"`` takes CUDA, else Apple's MPS, else the CPU; or any device that torch knows. A model that is
            too large for one device is spread over all of them, then the main memory, then the disk, with
            ``"balanced"``, ``"balanced_low_0"`` (the first device keeps room for activations) or ``"sequential"``
            (each is filled before the next), accelerate's device maps.
        max_memory: with a device map, the most that each device may hold, as ``{0: "20GiB", "cpu": "60GiB"}``.
    """
    dtype, spread = _dtype(dtype), device in DEVICE_MAPS
    target = _device("cpu" if spread else device, dtype)
    if max_memory is not None and not spread:
        raise InputError(
            f"max_memory goes with a device map ({', '.join(DEVICE_MAPS)}), but device is {shown(device)}."
        )
    whole, blocks = names.split(name)
    if blocks is not None:
        loaded = truncate(load(whole, dtype=dtype, device="cpu" if spread else device), blocks)
        return replace(loaded, model=_dispatch(loaded.model, device, max_memory)) if spread else loaded
    placement = {"device_map": device, "max_memory": max_memory} if spread else {}
    gguf_sha256 = ""
    if name in embedded.MODELS or names.is_gguf(name):
        folder, gguf_sha256 = dequantised.folder(name)
        # Its tokenizer as it is stored: the class of its architecture would put rules of its own in their place.
        model, tokenizer = _from_folder(str(folder), dtype, placement, kind=TokenizersBackend)
    elif name.startswith(PREFIX):
        model, tokenizer = build(name, dtype)
        if spread:
            model = _dispatch(model, device, max_memory)
    else:
        model, tokenizer = _pretrained(name, dtype, placement)
    loaded = assemble(name, model if spread else model.to(target), tokenizer)
    return replace(loaded, gguf_sha256=gguf_sha256)


def _dispatch(model: PreTrainedModel, device_map: str, max_memory: Mapping[int | str, int | str] | None) -> Any:
    """Spread a model that is in the main memory."""
    whole = list(model._no_split_modules or [])
    try:
        limits = dict(max_memory) if max_memory is not None else None
        if device_map != "sequential":
            low = device_map == "balanced_low_0"
            limits = get_balanced_memory(model, limits, no_split_module_classes=whole, low_zero=low)
        return dispatch_model(model, infer_auto_device_map(model, limits, no_split_module_classes=whole))
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"The model cannot be spread with {device_map} and max_memory={shown(max_memory)}, which gives the memory "
            f"of each device, as {{'cpu': '20GiB'}}: {named(' '.join(str(error).split()))}."
        ) from error


def assemble(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    """Find the blocks, the embedding and the final norm of a decoder-only model.

    The blocks are the one ``ModuleList`` as long as the configuration's number of layers; the final norm is the norm
    that stands beside them; transformers itself names the embedding. An InputError says which cannot be found.
    """
    kind = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"Model {shown(name)} ({kind}) has an encoder; only decoder-only models are supported.")
    depth = model.config.get_text_config().num_hidden_layers
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    outermost = min((path.count(".") for path, _ in lists), default=0)
    lists = [(path, module) for path, module in lists if path.count(".") == outermost]
    if len(lists) != 1:
        raise InputError(
            f"Cannot find the blocks of model {shown(name)} ({kind}): {len(lists)} lists of {depth} modules."
        )
    path, blocks = lists[0]
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise InputError(f"Cannot find the input embedding of model {shown(name)} ({kind}).")
    parent = model.get_submodule(path.rpartition(".")[0])
    norms = [module for module in parent.children() if "norm" in type(module).__name__.lower()]
    order = list(parent.children())
    if len(norms) > 1:  # BLOOM has a norm after the embedding too
        norms = [module for module in norms if order.index(module) > order.index(blocks)]
    if len(norms) != 1:
        raise InputError(
            f"Cannot find the final norm of model {shown(name)} ({kind}): {len(norms)} norms beside its blocks."
        )
    if model.get_output_embeddings() is None:
        raise InputError(f"Model {shown(name)} ({kind}) has no language-modelling head.")
    return LoadedModel(name, model.eval(), tokenizer, blocks, embedding, norms[0])


def truncate(loaded: LoadedModel, blocks: int) -> LoadedModel:
    """A copy of a model, named ``name[:blocks]``, that ends after its first ``blocks`` blocks (paper, Figure 3).

    The final norm and the head follow directly, with the weights that they had behind the last block.
    """
    if not 1 <= blocks <= len(loaded.blocks):
        raise InputError(
            f"blocks must be between 1 and {len(loaded.blocks)}, the depth of {shown(loaded.name)}, but is {blocks}."
        )
    path = next(path for path, module in loaded.model.named_modules() if module is loaded.blocks)
    model = copy.deepcopy(loaded.model)
    parent = model.get_submodule(path.rpartition(".")[0])
    setattr(parent, path.rpartition(".")[2], getattr(parent, path.rpartition(".")[2])[:blocks])
    config = model.config.get_text_config()
    config.num_hidden_layers = blocks
    # Some architectures say for every layer which kind of attention it has; Mamba counts them by itself.
    if len(getattr(config, "layer_types", None) or []) > blocks:
        config.layer_types = list(config.layer_types)[:blocks]
    short = assemble(f"{loaded.name}[:{blocks}]", model, loaded.tokenizer)
    return replace(short, gguf_sha256=loaded.gguf_sha256)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, shapes, dtypes and values of a model's parameters and buffers."""
    state = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        state.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        path, _, name = key.rpartition(".")
        module = model.get_submodule(path)
        with align_module_device(module):
            value = getattr(module, name) if value.is_meta else value
            state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return state.hexdigest()


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    known = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if known not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise InputError(f"dtype must be float32, bfloat16, float16 or float64, but is {shown(dtype)}.")
    return known


def _device(device: str, dtype: torch.dtype) -> torch.device:
    """The device of a name, if it computes what a model needs in this dtype: torch knows more than it can use."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = torch.ones(2, 2, device=device, dtype=dtype)
            computed = torch.nn.functional.layer_norm(x @ x, (2,)).softmax(-1).sum().item()
        if abs(computed - 2) < 0.1 and not (x.device.type == "cpu" and torch.device(device).index):
            return x.device
    except Exception as error:  # each backend has errors of its own
        log.debug("%s with %s: %s", device, dtype, error)
    raise InputError(
        f"Device {shown(device)} cannot compute here with dtype {str(dtype).removeprefix('torch.')}: choose auto, cpu, "
        f"one that torch finds (cuda, mps), or a device map ({', '.join(DEVICE_MAPS)})."
    )


def _from_folder(
    source: str,
    dtype: torch.dtype,
    placement: Mapping[str, Any],
    local_files_only: bool = True,
    kind: type[AutoTokenizer | TokenizersBackend] = AutoTokenizer,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with quiet():
        model = weights.read(source, dtype, local_files_only=local_files_only, **placement)
        tokenizer = kind.from_pretrained(source, local_files_only=local_files_only, trust_remote_code=False)
        weights.check_tokenizer(source, model, tokenizer)
    return model, tokenizer


def _pretrained(
    name: str, dtype: torch.dtype, placement: Mapping[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    is_folder = names.is_folder(name)
    source = str(Path(name).expanduser()) if is_folder else name
    if is_folder:
        weights.check_folder(Path(source))
    local = {"local_files_only": is_folder or not names.hub_answers(name)}
    try:
        if not is_folder and names.lies_here(name):  # which transformers would read
            log.warning("The model %s is the Hub's; the folder of that name here would be ./%s.", name, name)
            source = snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"], **local)
        return _from_folder(source, dtype, placement, **local)
    except InputError:
        raise
    except Exception as error:
        raise InputError(_why_not_loaded(name, is_folder, error)) from error


def _why_not_loaded(name: str, is_folder: bool, error: Exception) -> str:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(e) for e in chain)
    reason = named(" ".join(str(error).split()) or type(error).__name__)
    if "trust_remote_code" in text:
        return (
            f"Model {shown(name)} needs code from its repository, which is never run here: choose a model that "
            "transformers itself supports."
        )
    if is_folder:
        return f"The folder {shown(name)} holds no model that transformers can load: {reason}"
    if any(isinstance(e, hub_errors.GatedRepoError) for e in chain) or "gated repo" in text:
        return (
            f"Model {shown(name)} is gated: accept its licence on https://huggingface.co/{name} and log in with "
            "`hf auth login`."
        )
    unreachable = (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled, ConnectionError, TimeoutError)
    if any(isinstance(e, unreachable) for e in chain) or "connect" in text.lower() or "offline" in text.lower():
        return names.unreachable(name)
    if "safetensors" in text:
        return (
            f"Model {shown(name)} has no safetensors weights, and pickled ones are not read: convert it, or choose "
            "another revision of it."
        )
    return f"Model {shown(name)} cannot be loaded: {reason}"


def describe(loaded: LoadedModel) -> dict[str, Any]:
    """A model's identity for provenance: name, architecture, size, dtype and a fingerprint of its weights."""
    config = loaded.model.config
    return {
        "name": title(loaded.name),
        "architecture": type(loaded.model).__name__,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "blocks": len(loaded.blocks),
        "width": loaded.width,
        **({"gguf_sha256": loaded.gguf_sha256} if loaded.gguf_sha256 else {}),
        "tied_embeddings": bool(getattr(config, "tie_word_embeddings", False)),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "weights_sha256": loaded.weights_sha256,
        "config_sha256": hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True, default=str).encode()).hexdigest(),
    }
