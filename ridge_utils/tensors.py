"""The one check of tensors at every public door: real numbers, finite, of the shape that is meant.

Whatever is returned is detached from any graph. Each error names the argument and says what to do.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ridge_utils.errors import InputError, valid_seed

#: Lengths of samples outside these have squares, or products of their squares, that no float64 holds.
SMALLEST, LARGEST = 1e-70, 1e70


def real(x: Any, name: str) -> Tensor:
    """A tensor of real numbers, in its own dtype; arrays and lists become one."""
    if not isinstance(x, Tensor):
        try:
            x = torch.from_numpy(np.array(x))  # Python's numbers as float64, where torch would take float32
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise InputError(f"{name} must be a tensor of numbers, but is of type {type(x).__name__}.") from None
    if x.is_complex() or x.is_quantized or x.is_meta or x.layout != torch.strided:
        kind = "a tensor without values" if x.is_meta else f"{x.dtype}, {x.layout}"
        raise InputError(f"{name} must be a dense tensor of real numbers, but is {kind}: convert it first.")
    return x.detach()


def shaped(x: Any, name: str, shape: str = "(..., N, d)", least: int = 2) -> Tensor:
    """:func:`real`, of a shape written as in "(N, d)": as many dimensions, or more after dots, N at least ``least``."""
    x = real(x, name)
    axes = [axis for axis in shape.strip("()").replace(" ", "").split(",") if axis]
    given = tuple(x.shape)
    dots = axes[0] == "..."
    fits = x.ndim >= len(axes) - 1 if dots else x.ndim == len(axes)
    if not fits or 0 in given:
        raise InputError(f"{name} must have shape {shape}, none of them 0, but has shape {given}.")
    if "N" in axes and given[axes.index("N") - len(axes)] < least:
        raise InputError(f"{name} of shape {given} must hold {least} samples or more.")
    return x


def samples(x: Any, name: str, shape: str = "(..., N, d)", least: int = 2) -> Tensor:
    """:func:`shaped` samples as float64 with only finite entries, the length of each within what can be squared.

    On the CPU where the device has no float64 (Apple's MPS).
    """
    x = shaped(x, name, shape, least)
    x = (x.cpu() if x.device.type == "mps" else x).to(torch.float64)
    length = torch.linalg.vector_norm(x, dim=-1)
    usable = (length > SMALLEST) & (length < LARGEST)
    if not bool(usable.all()):
        _refuse(x, length, usable, name)
    return x


def _refuse(x: Tensor, length: Tensor, usable: Tensor, name: str) -> None:
    """Say what is wrong with samples of unusable length; zero vectors are for the caller to judge."""
    if not bool((finite := x.isfinite()).all()):
        where = (~finite).nonzero()[0].tolist()
        raise InputError(
            f"{name} of shape {tuple(x.shape)} contains {x[tuple(where)].item()} at index {position(where)}: find the "
            "overflow in the model (a wider dtype often helps) or remove the sample."
        )
    usable = usable | (x == 0).all(-1)
    if not bool(usable.all()):
        where = (~usable).nonzero()[0].tolist()
        raise InputError(
            f"The sample at index {position(where)} of {name} of shape {tuple(x.shape)} has entries as large as "
            f"{x[tuple(where)].abs().max().item():.3g}: scale all of them, for the square of its length is no number."
        )


def paired(x: Any, y: Any, shapes: tuple[str, str] = ("(..., N, d)", "(..., N, e)")) -> tuple[Tensor, Tensor]:
    """Both as :func:`samples`, as many of one as of the other, their leading dimensions broadcastable."""
    x, y = samples(x, "x", shapes[0]), samples(y, "y", shapes[1])
    same_number(x, y, ("x", "y"))
    return x, y


def same_number(x: Tensor, y: Tensor, names: tuple[str, str], axes: tuple[int, int] = (-2, -2)) -> None:
    """Refuse tensors that do not hold as many samples, along the axes, or do not broadcast before them."""
    leading = zip(x.shape[: axes[0]][::-1], y.shape[: axes[1]][::-1], strict=False)
    broadcasts = all(1 in pair or pair[0] == pair[1] for pair in leading)
    if x.shape[axes[0]] != y.shape[axes[1]] or not broadcasts:
        raise InputError(
            f"{names[0]} and {names[1]} must hold as many samples, but have shapes {tuple(x.shape)} and "
            f"{tuple(y.shape)}."
        )


def whole(x: Any, name: str, least: int = 1, below: int | None = None) -> Tensor:
    """:func:`shaped` whole numbers as int64: labels, or indices from 0 to ``below`` - 1."""
    x = shaped(x, name, "(N,)", least)
    if x.is_floating_point() or x.dtype == torch.bool:
        raise InputError(f"{name} must hold whole numbers, but is of {x.dtype}.")
    x = x.to(torch.int64)
    if below is not None and bool(((x < 0) | (x >= below)).any()):
        worst = x[(x < 0) | (x >= below)].flatten()[0].item()
        raise InputError(f"{name} must hold indices from 0 to {below - 1}, but holds {worst}.")
    return x


def indices(x: Any, name: str, below: int) -> list[Tensor]:
    """A list of samples, each the indices of two examples or more, from 0 to ``below`` - 1."""
    if not isinstance(x, Sequence) or not x:
        raise InputError(f"{name} must be a list of one sample of indices or more: leave it out to take all examples.")
    return [whole(sample, f"{name}[{i}]", least=2, below=below) for i, sample in enumerate(x)]


def symmetric(x: Any, name: str, least: int = 2, rounding: float = 1e-6) -> Tensor:
    """:func:`samples` that are symmetric matrices, but for so much beside their largest entry."""
    x = samples(x, name, "(..., N, N)", least)
    if x.shape[-1] != x.shape[-2] or bool(((x - x.mT).abs() > rounding * x.abs().amax()).any()):
        raise InputError(f"{name} must hold symmetric matrices of shape (..., N, N), but has shape {tuple(x.shape)}.")
    return x


def single(x: Tensor, name: str) -> Tensor:
    """Samples in float32, refused where their squares leave its range."""
    x32 = x.float()
    if not bool(x32.square().sum(-1).isfinite().all()) or (not bool(x32.any()) and bool(x.any())):
        raise InputError(
            f"{name} has entries as large as {x.abs().max().item():.3g}, whose squares float32 cannot hold: scale it."
        )
    return x32


def position(where: list[int]) -> str:
    """An index as a reader writes it."""
    return str(where[0]) if len(where) == 1 else str(tuple(where))


def generator(seed: int) -> torch.Generator:
    """A generator of its own, on the CPU, from a seed that is checked."""
    valid_seed(seed=seed)
    return torch.Generator().manual_seed(seed)
