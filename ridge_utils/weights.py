"""Reading a model's folder: every weight is one of its files', and nothing in it is run, waited for or believed.

transformers starts what a file lacks at random and goes on, with a report that is easily missed; here it is an error.
"""

import contextlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from huggingface_hub.utils import logging as hub_logging
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ridge_utils.errors import InputError, named, read_text, shown

#: Bytes of a JSON file of a model; the largest tokenizers have 40 million.
_LARGEST_JSON = 2**28
#: Ends of the names of architectures that predict the next token.
_LANGUAGE_HEADS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
#: What safetensors calls the numbers that weights may be stored as; others are codes that need a scale.
_NUMBERS = {"F64", "F32", "F16", "BF16"}
#: Buffers that old checkpoints hold beside their weights, and that are computed.
_COMPUTED = re.compile(r"(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$|position_ids$")
#: More layers than any model has; a list as long is made of them before a weight is read.
_MOST_LAYERS = 10_000
_INDEX = "model.safetensors.index.json"


def read(source: str, dtype: torch.dtype, **where: Any) -> PreTrainedModel:
    """The model of a folder or of the Hub, whose files held each of its weights, in its shape and finite, and no other.

    ``where`` the weights go and whether the Hub is asked is as ``from_pretrained`` takes it.
    """
    stored = _stored(Path(source)) if Path(source).is_dir() else {}
    config = AutoConfig.from_pretrained(source, local_files_only=where["local_files_only"], trust_remote_code=False)
    check_config(source, config, stored)
    model, report = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # reported below, by name
        output_loading_info=True,
        **where,
    )
    check_report(source, report)
    codes = [key for key, (_, kind) in stored.items() if kind not in _NUMBERS]
    ours = {end for name, _ in model.named_parameters() for end in (name, name.partition(".")[2])}
    _refuse(source, "stores codes that are no floating-point numbers for", [key for key in codes if key in ours])
    broken = [name for name, values in _values(model) if not bool(values.isfinite().all())]
    _refuse(source, f"has a value that is not finite, as {str(dtype).removeprefix('torch.')}, in", broken)
    if getattr(config, "is_decoder", True) is False and _looks_ahead(model):
        raise InputError(f"The model {named(source)} is an encoder: its states depend on the tokens behind them.")
    return model


def check_report(source: str, report: Mapping[str, Any]) -> None:
    """Turn what transformers reports of loading weights into an error."""
    mismatched = [
        f"{name} ({tuple(held)} in place of {tuple(shape)})" for name, held, shape in report["mismatched_keys"]
    ]
    _refuse(source, "lacks", report["missing_keys"])
    _refuse(source, "has another shape than its config.json says for", mismatched)
    _refuse(source, "has no place for", [key for key in report["unexpected_keys"] if not _COMPUTED.search(key)])


def check_tokenizer(source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that gives tokens that the model does not embed, or none."""
    embedding = model.get_input_embeddings()
    rows = embedding.num_embeddings if isinstance(embedding, torch.nn.Embedding) else 0
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if rows and largest >= rows:
        raise InputError(
            f"The tokenizer of {named(source)} has the token id {largest}, but the model embeds {rows} tokens: take "
            "the tokenizer that belongs to it."
        )
    if set(tokenizer("A sum is 1 + 2.").input_ids) <= set(tokenizer.all_special_ids):
        raise InputError(f"The tokenizer of {named(source)} finds no tokens in a text: its tokenizer.json is needed.")


def check_folder(folder: Path) -> None:
    """Refuse a folder with anything in it that a reader would wait for, that is no text, or that is an adapter."""
    try:
        for path in folder.iterdir():
            texts = path.suffix in (".json", ".jinja", ".model", ".txt", ".safetensors")
            if not path.is_file() and (texts or not path.is_dir()):
                raise InputError(f"{named(str(path))} is no file that can be read: remove it from the model's folder.")
            if path.suffix == ".json":
                content = _json(path)
                if path.name == "config.json":
                    _check_layers(path, content)
    except OSError as error:
        raise InputError(f"The model's folder {named(str(folder))} cannot be read: {error.strerror}.") from error
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{named(str(folder))} holds an adapter: merge it into its model and save that.")


def _check_layers(path: Path, content: Any) -> None:
    for key, value in content.items() if isinstance(content, dict) else ():
        _check_layers(path, value)
        if "layer" in key and isinstance(value, int | float) and not -1 <= value <= _MOST_LAYERS:
            raise InputError(f"{named(str(path))} says {shown(key)} is {shown(value)}: no model has so many layers.")


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path, "the model's file", _LARGEST_JSON))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{named(str(path))} is no JSON that can be read ({named(str(error))}).") from None


def _stored(folder: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and kind of each tensor in the files of a folder, from their headers."""
    whole, index = folder / "model.safetensors", folder / _INDEX
    if whole.exists() or not index.exists():
        return _header(whole) if whole.exists() else {}
    content = _json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"{named(str(index))} does not say in its weight_map which file holds which weight.")
    stored: dict[str, tuple[list[int], str]] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not name.endswith(".safetensors") or not (folder / name).is_file():
            raise InputError(f"{named(str(index))} names {shown(name)}, which is no file of weights beside it.")
        stored |= _header(folder / name)
    _refuse(str(folder), "lacks, though its index names it,", set(places) - set(stored))
    return stored


def _header(path: Path) -> dict[str, tuple[list[int], str]]:
    try:
        with safe_open(path, "pt") as file:
            return {key: ((part := file.get_slice(key)).get_shape(), part.get_dtype()) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors has one of its own
        raise InputError(
            f"{named(str(path))} is no whole file of weights ({named(str(error))}): get it again."
        ) from None


def check_config(source: str, config: PretrainedConfig, stored: Mapping[str, tuple[list[int], str]]) -> None:
    """Refuse another head, and what would take memory or time that the files' own size does not explain."""
    for head in config.architectures or []:
        if "For" in str(head) and not str(head).endswith(_LANGUAGE_HEADS):
            raise InputError(f"The model {named(source)} is a {shown(head)}: it has no language-modelling head.")
    depth = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not stored:
        return
    if not isinstance(depth, int) or not 1 <= depth <= len(stored):
        raise InputError(
            f"The config.json of {named(source)} asks for {shown(depth)} layers, but its files hold {len(stored)} "
            "weights: they do not belong together."
        )
    with torch.device("meta"):
        asked = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    held = sum(torch.Size(shape).numel() for shape, _ in stored.values())
    if asked > 2 * held + 10**7:
        raise InputError(
            f"The config.json of {named(source)} asks for {asked:,} weights, but its files hold {held:,}: they do not "
            "belong together."
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' own progress bars and advice, and the Hub client's; errors still come through."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _refuse(source: str, what: str, names: Iterable[str]) -> None:
    if wrong := sorted(names):
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(f"The model {named(source)} {what} {named(wrong[0])}{more}: get its files again, whole.")


def _values(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters by name, also those that accelerate keeps elsewhere."""
    for path, module in model.named_modules():
        with align_module_device(module):
            for name, value in module.named_parameters(recurse=False):
                yield f"{path}.{name}".lstrip("."), value.detach()


def _looks_ahead(model: PreTrainedModel) -> bool:
    """Whether a state changes with the token behind it."""
    with torch.inference_mode():
        ids = torch.tensor([[1, 2], [1, 3]], device=model.get_input_embeddings().weight.device)
        first, second = model(ids).logits[:, 0]
    return not torch.allclose(first, second, atol=1e-3)
