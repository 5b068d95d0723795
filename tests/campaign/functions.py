"""Bad tensors and numbers in every argument of every public function that takes them, made from names and types."""

import inspect
import math
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ridge_utils import inference, information, kernels, sequences, statistics, unbiased
from ridge_utils.audit import estimators, geometry, probes
from ridge_utils.errors import InputError
from tests.campaign.cases import Case, sentence

MODULES = (information, kernels, unbiased, sequences, statistics, inference, estimators, geometry, probes)
#: Public, but of tables and effects, or of what has been checked before.
NOT_OF_TENSORS = {
    *("effect_rows", "effects", "gathered", "across_seeds", "together"),
    *("band", "ridge_summary", "by_third", "depth_table", "beside"),
    *("check_bandwidth", "check_order", "inner_products", "kernel_matrix", "traces", "unit_rows"),
}
#: Classes that a user makes; the others are results.
MADE_BY_USERS = {"Estimator", "Settings"}
N, D, LAYERS = 30, 4, 3


def good(name: str, function: str) -> Any:
    """A good value of an argument, by its name; a KeyError for one that nobody has thought of."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    normal = torch.randn(LAYERS, N, D, generator=generator, dtype=torch.float64)
    gram = normal[0] @ normal[0].T
    values: dict[str, Any] = {
        "x": normal[0], "y": normal[1], "hidden": normal, "targets": normal[1], "states": normal[0],
        "gram": gram / gram.trace(), "a": gram / gram.trace(), "b": gram / gram.trace(),
        "information": normal[0, 0], "samples": [torch.arange(12), torch.arange(5, 20)],
        "labels": torch.arange(N) % 3, "groups": torch.arange(N),
        "first": normal[0, :, 0].tolist(), "second": normal[1, :, 0].tolist(), "halves": normal[0, :, 0].tolist(),
        "values": normal[0, :, 0].tolist(), "p_values": normal[0, :, 0].abs().clamp(max=1).tolist(),
        "alpha": 1.0, "bandwidth": 1.0, "kernel": "polynomial", "normalize": True,
        "estimator": kernels.Estimator(alpha=2.0), "n_shuffles": 2, "seed": 0, "steps": 6,
        "n": 3 if function == "principal_components" else N, "k": 1, "components": 2, "family": "linear",
        "dimensions": 4, "separation": 1.0, "symbols": 3, "classes": 3, "error": 0.1, "fraction": 0.5,
        "products": torch.float64, "pairs": "all", "pool": 100, "layer": 2, "blocks": 12,
    }  # fmt: skip
    if (function, name) in {("gaussian", "information"), ("clusters", "information")}:
        return 0.5
    if function == "embedding" and name == "labels":
        return torch.arange(N) // 2
    if function.startswith("sequence") and name in ("x", "hidden", "targets", "steps"):
        of_two_steps = normal.unflatten(-1, (2, 2))
        return {"x": of_two_steps[0], "hidden": of_two_steps, "targets": of_two_steps[1], "steps": [1, 2]}[name]
    return values[name]


def public() -> dict[str, Callable[..., Any]]:
    """The public functions and settings of the modules, by name."""
    found: dict[str, Callable[..., Any]] = {}
    for module in MODULES:
        found |= {
            name if name not in found else f"{name} of {module.__name__.rpartition('.')[2]}": value
            for name, value in vars(module).items()
            if _is_its_own(module, name, value)
        }
    return {name: value for name, value in found.items() if name not in NOT_OF_TENSORS}


def _is_its_own(module: ModuleType, name: str, value: Any) -> bool:
    is_public = not name.startswith("_") and (inspect.isfunction(value) or name in MADE_BY_USERS)
    return is_public and value.__module__ == module.__name__


def arguments(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """Good arguments of a function, all of its parameters."""
    return {parameter: good(parameter, name.split()[0]) for parameter in inspect.signature(function).parameters}


#: What is done to a good tensor, and whether the result should be as if nothing had been done.
BAD_TENSORS: dict[str, Callable[[Tensor, random.Random], Any]] = {
    "a NaN": lambda x, rng: _with(x, math.nan, rng),
    "an infinity": lambda x, rng: _with(x, math.inf, rng),
    "minus infinity": lambda x, rng: _with(x, -math.inf, rng),
    "a huge entry": lambda x, rng: _with(x, 1e200, rng),
    "all huge": lambda x, rng: x.double() * 1e250,
    "all tiny": lambda x, rng: x.double() * 1e-250,
    "complex": lambda x, rng: x.to(torch.complex128),
    "one dimension less": lambda x, rng: x[0],
    "no rows": lambda x, rng: x[..., :0, :] if x.ndim > 1 else x[:0],
    "no columns": lambda x, rng: x[..., :0],
    "one row": lambda x, rng: x[..., :1, :] if x.ndim > 1 else x[:1],
    "a row less": lambda x, rng: x[..., :-1, :] if x.ndim > 1 else x[:-1],
    "a number": lambda x, rng: torch.tensor(1.0),
    "nothing": lambda x, rng: torch.empty(0),
    "None": lambda x, rng: None,
    "a text": lambda x, rng: "hidden",
    "a list of texts": lambda x, rng: ["a", "b"],
    "a ragged list": lambda x, rng: [[1.0], [1.0, 2.0]],
    "a dictionary": lambda x, rng: {"x": 1},
    "without values": lambda x, rng: x.to("meta"),
    "sparse": lambda x, rng: x.to_sparse(),
}
#: Of these a function may take one that fits it: a layer of several, fewer samples.
OTHER_SHAPES = {"one dimension less", "one row", "a row less", "a number"}
#: Numbers of which 0 is one that is meant.
MAY_BE_ZERO = {"seed", "k", "separation", "error", "information", "memory"}
SAME: dict[str, Callable[[Tensor], Any]] = {
    "with a gradient": lambda x: x.clone().requires_grad_() if x.is_floating_point() else x,
    "a copy in another order": lambda x: x.mT.contiguous().mT if x.ndim > 1 else x,
    "an array": lambda x: x.numpy(),
    "a list": lambda x: x.tolist(),
}
BAD_NUMBERS = [
    0, -1, -1e-300, 0.0, math.nan, math.inf, -math.inf, 1e308, 10**30, -(10**30), 2**64, None, "1", "median ", [], [1],
    True, 1j, {}, b"1", torch.tensor(1.0), object(),
]  # fmt: skip


def _with(x: Tensor, value: float, rng: random.Random) -> Tensor:
    x = x.double().clone()
    x.view(-1)[rng.randrange(x.numel())] = value
    return x


def cases(rng: random.Random, count: int) -> Iterator[Case]:
    """Every argument with every bad kind once, in random order, then again with other places and values."""
    functions = public()
    pairs = [(name, parameter) for name, function in functions.items() for parameter in arguments(name, function)]
    kinds = [
        (name, parameter, kind)
        for name, parameter in pairs
        for kind in (
            [*BAD_TENSORS, *SAME]
            if isinstance(good(parameter, name), Tensor) or _are_numbers(good(parameter, name))
            else range(len(BAD_NUMBERS))
        )
    ]
    rng.shuffle(kinds)
    for i in range(count):
        name, parameter, kind = kinds[i % len(kinds)]
        yield _case(name, functions[name], parameter, kind, random.Random(rng.random()))


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], float)


def _case(name: str, function: Callable[..., Any], parameter: str, kind: str | int, rng: random.Random) -> Case:
    given = arguments(name, function)
    before = given[parameter]
    tensor = torch.tensor(before, dtype=torch.float64) if _are_numbers(before) else before
    if kind in SAME:
        given[parameter] = SAME[kind](tensor)  # type: ignore[index]
        return Case("functions", f"{name}({parameter}={kind})", lambda: _same(function, name, given))
    if isinstance(kind, int):
        given[parameter] = BAD_NUMBERS[kind]
        kind = repr(BAD_NUMBERS[kind])[:40]
    else:
        given[parameter] = BAD_TENSORS[kind](tensor, rng)
    return Case(
        "functions", f"{name}({parameter}={kind})", lambda: _refused(function, parameter, str(kind), given, before)
    )


def _same(function: Callable[..., Any], name: str, given: dict[str, Any]) -> str:
    got, expected = call(function, given), call(function, arguments(name, function))
    for one, other in zip(numbers(got), numbers(expected), strict=True):
        if one.requires_grad or not torch.allclose(one.double(), other.double(), rtol=1e-9, atol=1e-12, equal_nan=True):
            return f"another result, {one.flatten()[:3].tolist()} for {other.flatten()[:3].tolist()}"
    return ""


def _refused(function: Callable[..., Any], parameter: str, kind: str, given: dict[str, Any], before: Any) -> str:
    try:
        result = call(function, given)
    except InputError as error:
        if wrong := sentence(str(error)):
            return wrong
        return "" if parameter in str(error) else f"the error does not name {parameter}: {error}"
    is_finite = all(bool(number.double().isfinite().all()) for number in numbers(result))
    # Of p-values a NaN is no test, and stays one.
    if (parameter == "p_values" and kind == "a NaN") or (
        is_finite and acceptable(parameter, kind, given[parameter], before)
    ):
        return ""
    return f"accepted {given[parameter]!r}"[:200]


def acceptable(parameter: str, kind: str, value: Any, before: Any) -> bool:
    """Whether an odd value may give a number after all: another shape or list that fits, or a number in the range."""
    if value is None:
        return parameter in ("samples", "groups")
    if isinstance(value, Tensor):
        # A profile or a list of values may be of any size; nothing else is measured where squares leave the range.
        any_size = parameter in ("information", "values", "halves", "first", "second", "p_values")
        is_small = kind in ("all tiny", "a huge entry", "all huge")
        return kind in OTHER_SHAPES or (any_size and is_small and abs(float(value.double().abs().max())) < math.inf)
    if isinstance(value, bool):
        return parameter == "normalize"
    if isinstance(value, list):
        return isinstance(before, list) and value != []
    return isinstance(value, int | float) and (0 < value < 10**30 or (value == 0 and parameter in MAY_BE_ZERO))


def call(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """What a function gives, its torch threads and warnings left alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return function(**given)


def numbers(result: Any) -> Iterator[Tensor]:
    """Every number in a result, as tensors."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, np.ndarray | float | int | bool):
        yield torch.as_tensor(result, dtype=torch.float64)
    elif is_dataclass(result):
        for field in fields(result):
            if field.name != "size":  # not defined where there is no spread
                yield from numbers(getattr(result, field.name))
    elif isinstance(result, list | tuple):
        for part in result:
            yield from numbers(part)
