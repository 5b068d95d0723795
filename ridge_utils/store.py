"""What a model gave on examples, kept in the cache: forward passes are the long part of a second run."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
import transformers
from tqdm import tqdm

from ridge_utils import cache
from ridge_utils.models import LoadedModel, title
from ridge_utils.representations import Representations, States, encode, forward, with_targets
from ridge_utils.tasks import Example

#: Part of every key: raise it when a computation that is remembered changes its numbers.
_RECIPE = 1

#: Examples whose states are stored at a time.
PART = 256

#: Kinds of entries of the cache: what is read from the disk must not be taken for what fits into memory.
_PARTS = "States.parts"
_MAPPED = "States.mapped"

T = TypeVar("T")


def remember(
    kind: type[T], loaded: LoadedModel, examples: Sequence[Example], compute: Callable[[], T], **shaped_by: Any
) -> T:
    """What ``compute`` gives, from the cache where the same model was given the same examples before.

    Entries are found by the model's weights and configuration, the token ids and signal spans, the device's kind, the
    versions of torch and transformers, and the settings in ``shaped_by``. ``kind``, which ``compute`` makes, is a
    dataclass whose fields are all tensors.
    """
    rows = [[*encode(loaded, example), example.signal_spans] for example in examples]
    return _found(kind, loaded, _key(loaded, rows, **shaped_by), compute)


def _found(kind: type[T], loaded: LoadedModel, key: dict[str, Any], compute: Callable[[], T]) -> T:
    return kind(**cache.tensors(kind.__name__, key, lambda: _tensors(compute()), title(loaded.name)))


def read(loaded: LoadedModel, examples: Sequence[Example], batch_size: int, label: str) -> Representations:
    """:func:`ridge_utils.representations.collect`, remembered.

    Entries are found as :func:`remember` finds them, but by the prompts alone: other targets need no other pass. More
    than :data:`PART` examples are collected part by part, and an interrupted collection goes on after the last
    whole part. Their states are left on the disk and read as far as they are used, so they may exceed the memory; while
    they are put together they take twice their room there. ``label`` is that of the progress bar.
    """
    encoded = [encode(loaded, example) for example in examples]
    prompts = [prompt for prompt, _ in encoded]
    key = _key(loaded, prompts, batch_size=batch_size)
    if len(prompts) <= PART or batch_size < 1:
        states = _found(States, loaded, key, lambda: forward(prompts, loaded, batch_size, label))
    else:
        states = _in_parts(loaded, prompts, batch_size, label, key)
    return with_targets(states, [target for _, target in encoded], loaded)


def _in_parts(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], batch_size: int, label: str, key: dict[str, Any]
) -> States:
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    size = max(PART // batch_size, 1) * batch_size
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    keys = [key | {"part": number, "examples": size} for number in range(len(parts))]

    def fill(arrays: dict[str, Any]) -> None:
        with tqdm(total=len(prompts), desc=f"hidden states, {label}", unit="prompt") as bar:
            for index, part in zip(parts, keys, strict=True):
                done, these = bar.n, [prompts[i] for i in index]
                states = cache.tensors(
                    _PARTS, part, lambda these=these: _tensors(forward(these, loaded, batch_size, bar)), model
                )
                bar.update(done + len(index) - bar.n)
                arrays["hidden"][:, index], arrays["final_norm"][index] = states["hidden"], states["final_norm"]

    n, d, model = len(prompts), loaded.width, title(loaded.name)
    dtype = "float64" if loaded.model.dtype == torch.float64 else "float32"
    shapes = {"hidden": (dtype, (len(loaded.blocks) + 1, n, d)), "final_norm": (dtype, (n, d))}
    whole = States(**cache.mapped(_MAPPED, key, shapes, fill, model))
    for part in keys:
        cache.discard(_PARTS, part)
    return whole


def _tensors(made: Any) -> dict[str, torch.Tensor]:
    return {field.name: getattr(made, field.name) for field in fields(made)}


def _key(loaded: LoadedModel, rows: Sequence[Any], **shaped_by: Any) -> dict[str, Any]:
    return {
        "recipe": _RECIPE,
        "weights": loaded.weights_sha256,
        "config": loaded.model.config.to_json_string(use_diff=False),
        "dtype": str(loaded.model.dtype),
        "encoded": cache.digest({"rows": rows}),
        "device": loaded.device.type,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        **shaped_by,
    }
