"""What a model gave on examples, kept in the cache: forward passes are the long part of a second run."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
import transformers

from ridge_utils import cache
from ridge_utils.models import LoadedModel, fingerprint
from ridge_utils.representations import encode
from ridge_utils.tasks import Example

#: Part of every key: raise it when a computation that is remembered changes its numbers.
_RECIPE = 1

T = TypeVar("T")


def remember(
    kind: type[T], loaded: LoadedModel, examples: Sequence[Example], compute: Callable[[], T], **shaped_by: Any
) -> T:
    """What ``compute`` gives, from the cache where the same model was given the same examples before.

    Entries are found by the model's weights and configuration, the token ids and signal spans, the device's kind, the
    versions of torch and transformers, and whatever else is named.

    Args:
        kind: a dataclass whose fields are all tensors.
        loaded: the model.
        examples: what it was given.
        compute: makes a ``kind``.
        shaped_by: the settings that ``compute`` depends on.

    Raises:
        StorageError: the cache cannot be written.
    """
    key = {
        "recipe": _RECIPE,
        "weights": fingerprint(loaded.model),
        "config": loaded.model.config.to_json_string(use_diff=False),
        "dtype": str(loaded.model.dtype),
        "encoded": cache.digest({"rows": [[*encode(loaded, e), e.signal_spans] for e in examples]}),
        "device": loaded.device.type,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        **shaped_by,
    }

    def build() -> dict[str, torch.Tensor]:
        made = compute()
        return {field.name: getattr(made, field.name) for field in fields(kind)}  # type: ignore[arg-type]

    return kind(**cache.tensors(kind.__name__, key, build))
