"""Matrix-based Rényi entropy and mutual information, and their profile over the layers of a network.

Tensors in, float64 tensors out, in nats; this module knows no model. The estimator is the one of the paper
("Quantities"): vectors are l2-normalised, a Gaussian Gram matrix is divided by its trace, and the von Neumann entropy
of its spectrum plays the part of Shannon's [SanchezGiraldoRP14]_.

.. [SanchezGiraldoRP14] L. G. Sanchez Giraldo, M. Rao, J. C. Principe. *Measures of Entropy from Data Using Infinitely
   Divisible Kernels.* IEEE Transactions on Information Theory 61(1), 2014. arXiv:1211.2459.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from ridge_utils.errors import InputError

Kernel = Literal["gaussian", "laplacian", "polynomial", "linear"]

#: A bandwidth, or ``"median"`` for :func:`median_bandwidth` of each set of samples.
Bandwidth = float | Literal["median"]

#: Nearer to order 1 than this, the entropy of order alpha is taken as its limit: the general formula would divide
#: rounding errors by ``1 - alpha``, and the limit is off by less than they are.
_ORDER_ONE = 1e-8

#: Rows nearer to each other than this, beside the longest row, are the same: rounding leaves 1e-8 between equal ones.
_SAME = 1e-6

#: Rows of a matrix of inner products that are computed at a time.
_STRIP = 64


def _check_order(alpha: float) -> None:
    if not 0 < alpha < math.inf:
        raise InputError(f"alpha must be greater than 0 and finite, but is {alpha}.")


@dataclass(frozen=True)
class Estimator:
    r"""What the matrix-based estimator is free to choose; the defaults are the paper's. It checks itself.

    With rows :math:`u_i` and bandwidth :math:`s`, the kernels are

    * ``gaussian``: :math:`\exp(-\lVert u_i - u_j \rVert^2 / (2 s^2))`;
    * ``laplacian``: :math:`\exp(-\lVert u_i - u_j \rVert / s)`;
    * ``polynomial``: :math:`(1 + u_i \cdot u_j / s^2)^{\text{degree}}`;
    * ``linear``: :math:`u_i \cdot u_j`, whatever the bandwidth.
    """

    kernel: Kernel = "gaussian"
    #: s > 0, in the units of the (normalised) rows, or ``"median"``
    bandwidth: Bandwidth = 1.0
    #: order of the Rényi entropy, > 0; 1 is the von Neumann entropy
    alpha: float = 1.0
    #: scale every row to Euclidean length 1 first
    normalize: bool = True
    #: of the polynomial kernel, at least 1; the others ignore it
    degree: int = 2

    def __post_init__(self) -> None:
        """Refuse what does not exist, before anything long begins."""
        if self.kernel not in get_args(Kernel):
            raise InputError(f"Unknown kernel {self.kernel!r}; choose one of {', '.join(get_args(Kernel))}.")
        if isinstance(self.bandwidth, str):
            if self.bandwidth != "median":
                raise InputError(f'bandwidth must be a number or "median", but is {self.bandwidth!r}.')
        elif not self.bandwidth > 0:
            raise InputError(f"bandwidth must be greater than 0, but is {self.bandwidth}.")
        elif not 1e-100 < self.bandwidth < 1e100:
            raise InputError(
                f"bandwidth must lie between 1e-100 and 1e100, but is {self.bandwidth}: its square is no number."
            )
        _check_order(self.alpha)
        if self.degree < 1:
            raise InputError(f"degree must be at least 1, but is {self.degree}.")


#: The paper's choices, a Gaussian kernel of bandwidth 1 on rows of length 1 and order 1.
PAPER = Estimator()


def gram_matrix(x: Tensor, estimator: Estimator = PAPER) -> Tensor:
    """Gram matrix of the estimator's kernel on the rows of ``x``, divided by its trace; its order plays no part.

    Samples of shape (..., N, d) give symmetric positive semi-definite matrices of trace 1, shape (..., N, N), float64.
    Distances come from one matrix product, so memory is a few N x N matrices.
    """
    matrix = _kernel_matrix(_inner_products(x, estimator.normalize), estimator)
    return matrix / _trace(matrix)[..., None, None]


def median_bandwidth(x: Tensor) -> Tensor:
    """Bandwidth by the median rule: the median distance between two different rows of ``x``, taken as they are.

    Pairs of equal rows are left out, or a target that most examples share would make it 0. Of an even number of pairs
    it is the lower of the two in the middle. Where all rows are the same every bandwidth gives the same Gram matrix,
    and it is 1. Samples of shape (..., N, d) give bandwidths of shape (...), float64, in the units of the rows.
    """
    _check_samples_shape(x)
    _require_finite(x, "tensor of samples")
    x = _double(x)
    return _median_distance(x @ x.mT)


def entropy(gram: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Matrix-based Rényi entropy of order ``alpha``, between 0 and ln N nats.

    :math:`H_\alpha(G) = \frac{1}{1-\alpha} \ln \sum_i \lambda_i^\alpha` over the eigenvalues of :math:`G`, and
    :math:`H_1(G) = -\operatorname{tr}(G \ln G)`, its limit (the paper's order). Positive semi-definite matrices of
    trace 1, shape (..., N, N), give shape (...), float64.
    """
    _check_order(alpha)
    gram = _double(gram)
    if gram.ndim < 2 or gram.shape[-1] != gram.shape[-2]:
        raise InputError(f"A Gram matrix has shape (..., N, N), but this tensor has shape {tuple(gram.shape)}.")
    _require_finite(gram, "Gram matrix")
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    if bool(((trace - 1).abs() > 1e-6).any()):
        worst = trace.flatten()[(trace - 1).abs().argmax()].item()
        raise InputError(f"A Gram matrix must have trace 1, but one has trace {worst:.6g}: divide it by its trace.")
    return _entropy(gram, alpha)


def joint_entropy(a: Tensor, b: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Joint entropy :math:`H_\alpha(A \circ B / \operatorname{tr}(A \circ B))` of two Gram matrices, in nats.

    Both are over the same N samples, shape (..., N, N); leading dimensions broadcast.
    """
    a, b = _double(a), _double(b)
    if a.shape[-2:] != b.shape[-2:]:
        raise InputError(
            f"The Gram matrices must be over the same samples, but have shapes {tuple(a.shape)} and {tuple(b.shape)}."
        )
    product = a * b
    return entropy(product / _trace(product)[..., None, None], alpha)


def mutual_information(x: Tensor, y: Tensor, estimator: Estimator = PAPER) -> Tensor:
    r"""Matrix-based mutual information :math:`I(X;Y) = H(G_X) + H(G_Y) - H(G_X \circ G_Y)`, in nats.

    For the Gaussian and the Laplacian kernel at order 1 it lies between 0 and :math:`\min(H(G_X), H(G_Y))`; at other
    orders it can be negative, and under the linear kernel too where samples point away from each other. Paired samples
    of shapes (..., N, d) and (..., N, e), whose leading dimensions broadcast, give shape (...), float64.
    """
    if x.ndim < 2 or y.ndim < 2 or x.shape[-2] != y.shape[-2]:
        raise InputError(
            "x and y must have the same number of samples in their last dimension but one, but have shapes "
            f"{tuple(x.shape)} and {tuple(y.shape)}."
        )
    gram_x, gram_y, alpha = gram_matrix(x, estimator), gram_matrix(y, estimator), estimator.alpha
    return entropy(gram_x, alpha) + entropy(gram_y, alpha) - joint_entropy(gram_x, gram_y, alpha)


def predictive_information(
    hidden: Tensor, targets: Tensor, estimator: Estimator = PAPER, *, samples: Sequence[Tensor] | None = None
) -> Tensor:
    r"""Predictive information :math:`I(Z_l; Y)` of every layer, in nats (paper, Section 3).

    Of the residual updates :math:`\Delta Z_l = Z_l - Z_{l-1}` it is the incremental information gain
    :math:`I(\Delta Z_l; Y)` of every block.

    The layers are taken one by one, so memory stays at a few N x N matrices; :math:`H(G_Y)` is computed once. Bands
    over subsamples are best had with ``samples``: the inner products of the vectors, the costly part of a Gram matrix,
    are then computed once for all of them.

    Args:
        hidden: hidden states at the last prompt token (or updates), shape (layers, N, d).
        targets: input-embedding rows of the target tokens, shape (N, e).
        samples: indices of examples; one profile is estimated from each of them.

    Returns:
        Shape (layers,), float64; with samples, shape (samples, layers).
    """
    _check_profile(hidden, targets, samples)
    with _workers(hidden.device) as each:
        kernels_y = _Kernels(_inner_products(targets, estimator.normalize), samples, estimator)
        entropies_y = [_entropy(y, estimator.alpha) for y in kernels_y]

        def information(layer: int) -> Tensor:
            kernels_z = _Kernels(_layer_products(hidden, layer, estimator.normalize), samples, estimator)
            values = [
                _entropy(z, estimator.alpha) + entropy_y - _entropy(y.mul(z), estimator.alpha)
                for z, y, entropy_y in zip(kernels_z, kernels_y, entropies_y, strict=True)
            ]
            return torch.stack(values)

        profiles = torch.stack(each(information, len(hidden)), dim=1)
        return profiles[0] if samples is None else profiles


def permutation_null(
    hidden: Tensor, targets: Tensor, n_shuffles: int = 200, seed: int = 0, estimator: Estimator = PAPER
) -> Tensor:
    r"""Predictive information of every layer with the targets shuffled: what the estimator gives where there is none.

    A shuffle changes which state goes with which target and nothing else, so :math:`H(G_Z)` and :math:`H(G_Y)` stay and
    only the joint entropy is computed anew. All layers share each shuffle, so the null of a difference between two
    layers is the difference of their columns. Shapes are as for :func:`predictive_information`; the result has shape
    (shuffles, layers), float64.
    """
    _check_profile(hidden, targets)
    with _workers(hidden.device) as each:
        kernel_y = _kernel_matrix(_inner_products(targets, estimator.normalize), estimator)
        orders = _shuffles(len(targets), n_shuffles, seed)
        entropy_y = _entropy(kernel_y, estimator.alpha)

        def null(layer: int) -> Tensor:
            kernel_z = _kernel_matrix(_layer_products(hidden, layer, estimator.normalize), estimator)
            joint = [_entropy(_rows(kernel_y, order).mul_(kernel_z), estimator.alpha) for order in orders]
            return _entropy(kernel_z, estimator.alpha) + entropy_y - torch.stack(joint)

        return torch.stack(each(null, len(hidden)), dim=1)


def excess_information(
    hidden: Tensor,
    targets: Tensor,
    n_shuffles: int = 200,
    seed: int | Sequence[int] = 0,
    estimator: Estimator = PAPER,
    *,
    samples: Sequence[Tensor] | None = None,
) -> Tensor:
    r"""Predictive information of every layer less the mean of its permutation null, in nats.

    The entropies of states and targets cancel, so it is the mean joint entropy over the shuffles less the joint entropy
    of the true pairs,
    :math:`\frac{1}{S} \sum_s H(G_Z \circ \Pi_s G_Y \Pi_s^\top) - H(G_Z \circ G_Y)`: around 0 where states say
    nothing about the targets.

    Shapes and samples are as for :func:`predictive_information`; with samples, each has a seed of its own.
    """
    _check_profile(hidden, targets, samples)
    seeds = [seed] if isinstance(seed, int) else list(seed)
    if len(seeds) != (1 if samples is None else len(samples)):
        raise InputError(
            f"Each sample needs a seed, but there are {len(samples or [])} samples and {len(seeds)} seeds."
        )
    with _workers(hidden.device) as each:
        kernels_y = _Kernels(_inner_products(targets, estimator.normalize), samples, estimator)
        sizes = [len(targets)] if samples is None else [len(sample) for sample in samples]
        shuffles = [_shuffles(n, n_shuffles, sample_seed) for n, sample_seed in zip(sizes, seeds, strict=True)]

        def excess(layer: int) -> Tensor:
            kernels_z = _Kernels(_layer_products(hidden, layer, estimator.normalize), samples, estimator)
            values = []
            for kernel_z, kernel_y, orders in zip(kernels_z, kernels_y, shuffles, strict=True):
                joint = [_entropy(_rows(kernel_y, order).mul_(kernel_z), estimator.alpha) for order in orders]
                values.append(torch.stack(joint).mean() - _entropy(kernel_y.mul(kernel_z), estimator.alpha))
            return torch.stack(values)

        profiles = torch.stack(each(excess, len(hidden)), dim=1)
        return profiles[0] if samples is None else profiles


def ridge_layer(information: Tensor) -> Tensor:
    r"""Generalization ridge :math:`l^* = \arg\max_l I(Z_l; Y)` (paper, Section 3); the first of several equal maxima.

    Profiles of shape (..., layers), entry 0 for the embedding, give indices of shape (...), int64. Whether there is a
    ridge at that layer, :func:`ridge_utils.statistics.ridge_summary` says.
    """
    if information.ndim < 1 or information.shape[-1] == 0:
        raise InputError(f"A profile has shape (..., layers), but this tensor has shape {tuple(information.shape)}.")
    if bool(information.isnan().any()):
        raise InputError("The profile contains a NaN, so it has no maximum.")
    # torch.argmax leaves open which of several equal maxima it returns.
    is_maximum = information == information.amax(-1, keepdim=True)
    return is_maximum.to(torch.int8).cumsum(-1).eq(0).sum(-1)


@contextlib.contextmanager
def _workers(device: torch.device) -> Iterator[Callable[[Callable[[int], Tensor], int], list[Tensor]]]:
    """Within this context, torch computes with one thread, and what it gives maps 0 to n - 1 with as many as it had.

    An eigenproblem of a few hundred samples is too small to be shared out, so several are solved at a time.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1:
        yield lambda work, count: [work(index) for index in range(count)]
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield lambda work, count: list(pool.map(work, range(count)))
    finally:
        torch.set_num_threads(threads)


def _check_profile(hidden: Tensor, targets: Tensor, samples: Sequence[Tensor] | None = None) -> None:
    if hidden.ndim != 3 or targets.ndim != 2 or hidden.shape[1] != targets.shape[0]:
        raise InputError(
            "hidden must have shape (layers, N, d) and targets (N, e) with the same N, but they have shapes "
            f"{tuple(hidden.shape)} and {tuple(targets.shape)}."
        )
    n = len(targets)
    for number, sample in enumerate(samples or []):
        if sample.ndim != 1 or len(sample) < 2 or bool(((sample < 0) | (sample >= n)).any()):
            raise InputError(
                f"Each of the samples must be 2 or more indices from 0 to {n - 1}, but number {number} is "
                f"{sample.tolist()}."
            )


def _shuffles(n: int, count: int, seed: int) -> list[Tensor]:
    if count < 1:
        raise InputError(f"n_shuffles must be at least 1, but is {count}.")
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(n, generator=generator) for _ in range(count)]


def _inner_products(x: Tensor, normalize: bool) -> Tensor:
    """Inner products of the rows of ``x``, scaled to length 1 first where that is wanted; shape (..., N, N)."""
    _check_samples_shape(x)
    x = _double(x)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    if not bool(norm.isfinite().all()):
        _require_finite(x, "tensor of samples")
    if normalize:
        if bool((norm == 0).any()):
            where = tuple((norm.squeeze(-1) == 0).nonzero()[0].tolist())
            raise InputError(
                f"The sample at index {_index(where)} of a tensor of shape {tuple(x.shape)} is the zero vector, which "
                "has no direction: remove it, or pass normalize=False."
            )
        x = x / norm
    return _self_products(x)


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


def _layer_products(hidden: Tensor, layer: int, normalize: bool) -> Tensor:
    try:
        return _inner_products(hidden[layer], normalize)
    except InputError as error:
        raise InputError(f"Layer {layer}: {error}") from error


class _Kernels:
    """The kernel matrices of several samples of one pool, made whenever they are gone through: one is held at a time.

    A kernel's value depends on its two rows alone, so all samples take theirs from the pool's matrix; only with the
    median rule each sample has a bandwidth, and so values, of its own.
    """

    def __init__(self, products: Tensor, samples: Sequence[Tensor] | None, estimator: Estimator) -> None:
        self._samples = samples
        self._kernel = partial(_kernel_matrix, estimator=estimator)
        self._by_sample = samples is not None and estimator.bandwidth == "median"
        self._pool = products if self._by_sample else self._kernel(products)

    def __iter__(self) -> Iterator[Tensor]:
        if self._samples is None:
            yield self._pool
        for sample in self._samples or []:
            matrix = _rows(self._pool, sample)
            yield self._kernel(matrix) if self._by_sample else matrix


def _kernel_matrix(inner: Tensor, estimator: Estimator) -> Tensor:
    """A kernel on rows, from their inner products; both of shape (..., N, N)."""
    if estimator.kernel == "linear":
        return inner
    median = estimator.bandwidth == "median"
    scale = _median_distance(inner)[..., None, None] if median else estimator.bandwidth
    if estimator.kernel == "polynomial":
        return (1 + inner / scale**2) ** estimator.degree
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


def _double(x: Tensor) -> Tensor:
    """As float64, on the CPU where the device has no float64 (Apple's MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).to(torch.float64)


def _check_samples_shape(x: Tensor) -> None:
    if x.ndim < 2:
        raise InputError(f"Samples must have shape (..., N, d), but this tensor has shape {tuple(x.shape)}.")
    if x.shape[-2] < 2:
        raise InputError(f"At least 2 samples are needed, but a tensor of shape {tuple(x.shape)} holds {x.shape[-2]}.")


def _require_finite(x: Tensor, what: str) -> None:
    finite = x.isfinite()
    if not bool(finite.all()):
        where = tuple((~finite).nonzero()[0].tolist())
        raise InputError(
            f"The {what} of shape {tuple(x.shape)} contains {x[where].item()} at index {_index(where)}: find the "
            "overflow in the model (a wider dtype often helps) or remove the sample."
        )


def _rows(matrix: Tensor, index: Tensor) -> Tensor:
    """The rows and the columns at ``index``, in that order."""
    index = index.to(matrix.device)
    return matrix.index_select(-2, index).index_select(-1, index)


def _trace(matrix: Tensor) -> Tensor:
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    if bool((trace == 0).any()):
        raise InputError(f"All {matrix.shape[-1]} samples are zero, so the linear kernel has no trace.")
    return trace


def _entropy(matrix: Tensor, alpha: float) -> Tensor:
    """Entropy of a positive semi-definite matrix divided by its trace; its eigenvalues are divided in its place."""
    eigenvalues = torch.linalg.eigvalsh(matrix) / _trace(matrix)[..., None]
    # Rounding leaves some +-1e-17 where the rank ends, and at low orders such values would count.
    rounding = matrix.shape[-1] * torch.finfo(matrix.dtype).eps * eigenvalues[..., -1:]
    eigenvalues = torch.where(eigenvalues > rounding, eigenvalues, 0)
    if abs(alpha - 1) < _ORDER_ONE:
        return -torch.xlogy(eigenvalues, eigenvalues).sum(-1)
    return torch.logsumexp(alpha * eigenvalues.log(), -1) / (1 - alpha)


def _index(where: tuple[int, ...]) -> str:
    return str(where[0]) if len(where) == 1 else str(where)
