"""Kernels on samples and their Gram matrices, and what an estimator of information is free to choose."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ridge_utils import tensors
from ridge_utils.errors import InputError, finite_and_positive, of_type, shown, within

Kernel = Literal["gaussian", "laplacian", "polynomial", "linear"]

#: A bandwidth, or ``"median"`` for :func:`median_bandwidth` of each set of samples.
Bandwidth = float | Literal["median"]

#: Rows nearer to each other than this, beside the longest row, are the same: rounding leaves 1e-8 between equal ones.
_SAME = 1e-6

#: Rows of a matrix of inner products that are computed at a time.
_STRIP = 64


@dataclass(frozen=True)
class Estimator:
    r"""What the matrix-based estimator is free to choose; the defaults are the paper's. It checks itself.

    With rows :math:`u_i` and bandwidth :math:`s`, the kernels are

    * ``gaussian``: :math:`\exp(-\lVert u_i - u_j \rVert^2 / (2 s^2))`;
    * ``laplacian``: :math:`\exp(-\lVert u_i - u_j \rVert / s)`;
    * ``polynomial``: :math:`(1 + u_i \cdot u_j / s^2)^2`;
    * ``linear``: :math:`u_i \cdot u_j`, whatever the bandwidth.

    >>> Estimator(bandwidth="median", alpha=2.0)
    Estimator(kernel='gaussian', bandwidth='median', alpha=2.0, normalize=True)
    """

    kernel: Kernel = "gaussian"
    #: s > 0, in the units of the (normalised) rows, or ``"median"``
    bandwidth: Bandwidth = 1.0
    #: order of the Rényi entropy, > 0; 1 is the von Neumann entropy
    alpha: float = 1.0
    #: scale every row to Euclidean length 1 first
    normalize: bool = True

    def __post_init__(self) -> None:
        """Refuse what does not exist, before anything long begins."""
        if self.kernel not in get_args(Kernel):
            raise InputError(f"kernel must be one of {', '.join(get_args(Kernel))}, but is {shown(self.kernel)}.")
        check_bandwidth(self.bandwidth)
        check_order(self.alpha)
        of_type(bool, normalize=self.normalize)


def check_order(alpha: Any) -> None:
    """Refuse an order of which there is no entropy; above 1e100 its products with logarithms are no numbers."""
    finite_and_positive(alpha=alpha)
    within(0, 1e100, alpha=alpha)


def check_bandwidth(bandwidth: Any) -> None:
    """Refuse a bandwidth that is neither ``"median"`` nor a number whose square is one."""
    if isinstance(bandwidth, str):
        if bandwidth != "median":
            raise InputError(f'bandwidth must be a number or "median", but is {shown(bandwidth)}.')
        return
    finite_and_positive(bandwidth=bandwidth)
    within(1e-100, 1e100, bandwidth=bandwidth)


#: The paper's choices, a Gaussian kernel of bandwidth 1 on rows of length 1 and order 1.
PAPER = Estimator()


def gram_matrix(x: Tensor, estimator: Estimator = PAPER) -> Tensor:
    """Gram matrix of the estimator's kernel on the rows of ``x``, divided by its trace; its order plays no part.

    Samples of shape (..., N, d) give symmetric positive semi-definite matrices of trace 1, shape (..., N, N), float64.
    Distances come from one matrix product, so memory is a few N x N matrices.

    >>> gram_matrix(torch.eye(2))  # rows at the distance of the root of 2: exp(-1) over the trace, 2
    tensor([[0.5000, 0.1839], [0.1839, 0.5000]], dtype=torch.float64)
    """
    of_type(Estimator, estimator=estimator)
    matrix = kernel_matrix(inner_products(x, estimator.normalize), estimator)
    return matrix / traces(matrix)[..., None, None]


def median_bandwidth(x: Tensor) -> Tensor:
    """Bandwidth by the median rule: the median distance between two different rows of ``x``, taken as they are.

    Pairs of equal rows are left out, or a target that most examples share would make it 0. Of an even number of pairs
    it is the lower of the two in the middle. Where all rows are the same every bandwidth gives the same Gram matrix,
    and it is 1. Samples of shape (..., N, d) give bandwidths of shape (...), float64, in the units of the rows.

    >>> median_bandwidth(torch.tensor([[0.0], [0.0], [3.0]]))
    tensor(3., dtype=torch.float64)
    """
    x = tensors.samples(x, "x")
    return _median_distance(x @ x.mT)


def inner_products(x: Tensor, normalize: bool, name: str = "x") -> Tensor:
    """Inner products of the rows of ``x``, scaled to length 1 first where that is wanted; shape (..., N, N)."""
    x = tensors.samples(x, name)
    if normalize:
        x = unit_rows(x, name)
    return _self_products(x)


def unit_rows(x: Tensor, name: str) -> Tensor:
    """Rows scaled to length 1; the zero vector is refused."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    if bool((norm == 0).any()):
        where = (norm.squeeze(-1) == 0).nonzero()[0].tolist()
        raise InputError(
            f"The sample at index {tensors.position(where)} of {name}, a tensor of shape {tuple(x.shape)}, is the zero "
            "vector, which has no direction: remove it, or do not normalise."
        )
    return x / norm


def _self_products(x: Tensor) -> Tensor:
    """``x @ x.mT``, of whose two equal halves only one is computed."""
    if x.ndim > 2 or x.device.type != "cpu":
        return x @ x.mT
    inner = x.new_empty(len(x), len(x))
    for start in range(0, len(x), _STRIP):
        rows, left = slice(start, start + _STRIP), slice(0, start + _STRIP)
        torch.mm(x[rows], x[left].T, out=inner[rows, left])
        inner[:start, rows] = inner[rows, :start].T
    return inner


def kernel_matrix(inner: Tensor, estimator: Estimator) -> Tensor:
    """A kernel on rows, from their inner products; both of shape (..., N, N)."""
    if estimator.kernel == "linear":
        return inner
    median = estimator.bandwidth == "median"
    scale = _median_distance(inner)[..., None, None] if median else estimator.bandwidth
    if estimator.kernel == "polynomial":
        power = (1 + inner / scale**2).square()
        if not bool(power.isfinite().all()):
            raise InputError(
                f"The polynomial kernel overflows with bandwidth {estimator.bandwidth}: choose a larger bandwidth."
            )
        return power
    if estimator.kernel == "gaussian":
        return _squared_distances(inner).div_(-2 * scale**2).exp_()
    return _squared_distances(inner).sqrt_().div_(-scale).exp_()


def _squared_distances(inner: Tensor) -> Tensor:
    """Squared distances between all rows, from their inner products; both of shape (..., N, N)."""
    squares = inner.diagonal(dim1=-2, dim2=-1)
    distance = (squares.unsqueeze(-1) + squares.unsqueeze(-2)).sub_(inner, alpha=2).clamp_(min=0)
    # Rounding leaves about 1e-16 on the diagonal, which the Laplacian's square root would make 1e-8.
    distance.diagonal(dim1=-2, dim2=-1).zero_()
    return distance


def _median_distance(inner: Tensor) -> Tensor:
    """Median distance between two different rows, from their inner products of shape (..., N, N)."""
    pairs = torch.triu_indices(inner.shape[-1], inner.shape[-1], offset=1, device=inner.device)
    distance = _squared_distances(inner)[..., pairs[0], pairs[1]].sqrt()
    longest = inner.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True).sqrt()
    different = distance > _SAME * longest
    return distance.where(different, math.nan).nanmedian(-1).values.nan_to_num(nan=1.0)


def traces(matrix: Tensor) -> Tensor:
    """Traces of matrices of shape (..., N, N); one that is 0 is refused."""
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    if bool((trace == 0).any()):
        raise InputError(f"All {matrix.shape[-1]} samples are zero, so the linear kernel has no trace.")
    return trace
