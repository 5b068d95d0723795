"""Matrix-based Rényi entropy and mutual information, and their profile over the layers of a network.

Tensors in, float64 tensors out, in nats; this module knows no model. The estimator is the one of the paper
("Quantities"): vectors are l2-normalised, a Gaussian Gram matrix is divided by its trace, and the von Neumann entropy
of its spectrum plays the part of Shannon's [SanchezGiraldoRP14]_. Its bias, interval and null have closed forms in
order 2 (:func:`~ridge_utils.unbiased.unbiased_information`), which need no model either:

>>> import torch
>>> from ridge_utils import information
>>> _ = torch.manual_seed(0)
>>> y = torch.eye(4)[torch.arange(400) % 4]
>>> found = information.unbiased_information(torch.stack([torch.randn(400, 4), y + torch.randn(400, 4)]), y)
>>> found.information.value  # nats; the first layer knows nothing of y, the second does
tensor([-0.000..., 0.17...], dtype=torch.float64)
>>> found.information.interval()[1], found.z  # 95 %; standard errors over the mean of all pairings
(tensor([0.14..., 0.21...], dtype=torch.float64), tensor([-0.1..., 55.2...], dtype=torch.float64))
>>> found.plug_in(200).value, found.bias_share(200).value  # what 200 examples would give, and the bias in it
(tensor([0.03..., 0.19...], dtype=torch.float64), tensor([0.99..., 0.15...], dtype=torch.float64))

.. [SanchezGiraldoRP14] L. G. Sanchez Giraldo, M. Rao, J. C. Principe. *Measures of Entropy from Data Using Infinitely
   Divisible Kernels.* IEEE Transactions on Information Theory 61(1), 2014. arXiv:1211.2459.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from ridge_utils import tensors
from ridge_utils.errors import InputError, at_least, of_type
from ridge_utils.kernels import PAPER, Estimator, check_order, inner_products, kernel_matrix, traces
from ridge_utils.kernels import Kernel as Kernel
from ridge_utils.kernels import gram_matrix as gram_matrix
from ridge_utils.kernels import median_bandwidth as median_bandwidth
from ridge_utils.unbiased import ridge_fall as ridge_fall
from ridge_utils.unbiased import unbiased_information as unbiased_information

#: Nearer to order 1 than this, the entropy of order alpha is taken as its limit: the general formula would divide
#: rounding errors by ``1 - alpha``, and the limit is off by less than they are.
_ORDER_ONE = 1e-8

#: More than this, beside a trace of 1, is not rounding.
_NOT_ROUNDING = 1e-6


def entropy(gram: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Matrix-based Rényi entropy of order ``alpha``, between 0 and ln N nats.

    :math:`H_\alpha(G) = \frac{1}{1-\alpha} \ln \sum_i \lambda_i^\alpha` over the eigenvalues of :math:`G`, and
    :math:`H_1(G) = -\operatorname{tr}(G \ln G)`, its limit (the paper's order). Positive semi-definite matrices of
    trace 1, shape (..., N, N), give shape (...), float64.

    >>> entropy(torch.eye(8) / 8).exp().round(decimals=4)  # eight samples unlike each other have ln 8 nats
    tensor(8., dtype=torch.float64)
    """
    check_order(alpha)
    gram = tensors.symmetric(gram, "gram")
    trace = traces(gram)
    if bool(((trace - 1).abs() > _NOT_ROUNDING).any()):
        worst = trace.flatten()[(trace - 1).abs().argmax()].item()
        raise InputError(f"gram must have trace 1, but one matrix has trace {worst:.6g}: divide it by its trace.")
    return _entropy(gram, alpha)


def joint_entropy(a: Tensor, b: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Joint entropy :math:`H_\alpha(A \circ B / \operatorname{tr}(A \circ B))` of two Gram matrices, in nats.

    Both are over the same N samples, shape (..., N, N); leading dimensions broadcast.

    >>> alike = torch.ones(4, 4) / 4  # what is the same in all samples adds nothing to their ln 4
    >>> joint_entropy(torch.eye(4) / 4, alike).exp().round(decimals=4)
    tensor(4., dtype=torch.float64)
    """
    a, b = tensors.symmetric(a, "a"), tensors.symmetric(b, "b")
    tensors.same_number(a, b, ("a", "b"))
    product = a * b
    return entropy(product / traces(product)[..., None, None], alpha)


def mutual_information(x: Tensor, y: Tensor, estimator: Estimator = PAPER) -> Tensor:
    r"""Matrix-based mutual information :math:`I(X;Y) = H(G_X) + H(G_Y) - H(G_X \circ G_Y)`, in nats.

    For the Gaussian and the Laplacian kernel at order 1 it lies between 0 and :math:`\min(H(G_X), H(G_Y))`; at other
    orders it can be negative, and under the linear kernel too where samples point away from each other. Paired samples
    of shapes (..., N, d) and (..., N, e), whose leading dimensions broadcast, give shape (...), float64.

    >>> y = torch.eye(4)[torch.arange(100) % 4]  # four classes; with a narrow kernel, Shannon's ln 4
    >>> mutual_information(y, y, Estimator(bandwidth=0.01)).exp().round(decimals=4)
    tensor(4., dtype=torch.float64)
    """
    of_type(Estimator, estimator=estimator)
    x, y = tensors.paired(x, y)
    gram_x, gram_y, alpha = gram_matrix(x, estimator), gram_matrix(y, estimator), estimator.alpha
    return entropy(gram_x, alpha) + entropy(gram_y, alpha) - joint_entropy(gram_x, gram_y, alpha)


def predictive_information(
    hidden: Tensor, targets: Tensor, estimator: Estimator = PAPER, *, samples: Sequence[Tensor] | None = None
) -> Tensor:
    r"""Predictive information :math:`I(Z_l; Y) = H(G_Z) + H(G_Y) - H(G_Z \circ G_Y)` of every layer, in nats.

    For the Gaussian and the Laplacian kernel at order 1 it lies between 0 and :math:`\min(H(G_Z), H(G_Y))`; at other
    orders it can be negative, and under the linear kernel too where samples point away from each other (paper, Section
    3).

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

    >>> y = torch.eye(4)[torch.arange(100) % 4]
    >>> hidden = torch.stack([torch.ones(100, 4), y])  # a layer that is constant, and one that knows all
    >>> predictive_information(hidden, y).abs().round(decimals=4)
    tensor([0.0000, 1.0645], dtype=torch.float64)
    """
    hidden, targets, samples = _checked(hidden, targets, estimator, samples)
    with _workers(hidden.device) as each:
        kernels_y = _Kernels(inner_products(targets, estimator.normalize, "targets"), samples, estimator)
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

    >>> x, narrow = torch.eye(50), Estimator(bandwidth=0.01)  # unlike each other: ln N, whatever goes with what
    >>> permutation_null(x[None], x, 2, estimator=narrow).exp().round(decimals=4)
    tensor([[50.], [50.]], dtype=torch.float64)
    """
    hidden, targets, _ = _checked(hidden, targets, estimator)
    with _workers(hidden.device) as each:
        kernel_y = kernel_matrix(inner_products(targets, estimator.normalize, "targets"), estimator)
        orders = _shuffles(len(targets), n_shuffles, seed)
        entropy_y = _entropy(kernel_y, estimator.alpha)

        def null(layer: int) -> Tensor:
            kernel_z = kernel_matrix(_layer_products(hidden, layer, estimator.normalize), estimator)
            joint = [_entropy(_rows(kernel_y, order).mul_(kernel_z), estimator.alpha) for order in orders]
            return _entropy(kernel_z, estimator.alpha) + entropy_y - torch.stack(joint)

        return torch.stack(each(null, len(hidden)), dim=1)


def ridge_layer(information: Tensor) -> Tensor:
    r"""Generalization ridge :math:`l^* = \arg\max_l I(Z_l; Y)` (paper, Section 3); the first of several equal maxima.

    Profiles of shape (..., layers), entry 0 for the embedding, give indices of shape (...), int64. Whether there is a
    ridge at that layer, :func:`ridge_utils.statistics.ridge_summary` says.

    >>> ridge_layer(torch.tensor([0.0, 0.3, 0.2, 0.3]))
    tensor(1)
    """
    information = tensors.shaped(information, "information", "(..., layers)")
    if not bool(information.isfinite().all()):
        raise InputError("information holds a NaN or an infinite value, so it has no layer with the most.")
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


def _checked(
    hidden: Tensor, targets: Tensor, estimator: Estimator, samples: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor, list[Tensor] | None]:
    """States, whose values are looked at layer by layer, the targets, and the indices of each sample."""
    of_type(Estimator, estimator=estimator)
    hidden, targets = tensors.shaped(hidden, "hidden", "(layers, N, d)"), tensors.samples(targets, "targets", "(N, e)")
    tensors.same_number(hidden, targets, ("hidden", "targets"))
    return hidden, targets, None if samples is None else tensors.indices(samples, "samples", len(targets))


def _shuffles(n: int, count: int, seed: int) -> list[Tensor]:
    at_least(1, 10**6, n_shuffles=count)
    generator = tensors.generator(seed)
    return [torch.randperm(n, generator=generator) for _ in range(count)]


def _layer_products(hidden: Tensor, layer: int, normalize: bool) -> Tensor:
    return inner_products(hidden[layer], normalize, f"hidden[{layer}]")


class _Kernels:
    """The kernel matrices of several samples of one pool, made whenever they are gone through: one is held at a time.

    A kernel's value depends on its two rows alone, so all samples take theirs from the pool's matrix; only with the
    median rule each sample has a bandwidth, and so values, of its own.
    """

    def __init__(self, products: Tensor, samples: Sequence[Tensor] | None, estimator: Estimator) -> None:
        self._samples = samples
        self._kernel = partial(kernel_matrix, estimator=estimator)
        self._by_sample = samples is not None and estimator.bandwidth == "median"
        self._pool = products if self._by_sample else self._kernel(products)

    def __iter__(self) -> Iterator[Tensor]:
        if self._samples is None:
            yield self._pool
        for sample in self._samples or []:
            matrix = _rows(self._pool, sample)
            yield self._kernel(matrix) if self._by_sample else matrix


def _rows(matrix: Tensor, index: Tensor) -> Tensor:
    """The rows and the columns at ``index``, in that order."""
    index = index.to(matrix.device)
    return matrix.index_select(-2, index).index_select(-1, index)


def _entropy(matrix: Tensor, alpha: float) -> Tensor:
    """Entropy of a positive semi-definite matrix divided by its trace; its eigenvalues are divided in its place."""
    eigenvalues = torch.linalg.eigvalsh(matrix) / traces(matrix)[..., None]
    if bool((eigenvalues[..., 0] < -_NOT_ROUNDING).any()):
        raise InputError(f"A Gram matrix has no negative eigenvalue, but one has {eigenvalues.min().item():.3g}.")
    # Rounding leaves some +-1e-17 where the rank ends, and at low orders such values would count.
    rounding = matrix.shape[-1] * torch.finfo(matrix.dtype).eps * eigenvalues[..., -1:]
    eigenvalues = torch.where(eigenvalues > rounding, eigenvalues, 0)
    if abs(alpha - 1) < _ORDER_ONE:
        return -torch.xlogy(eigenvalues, eigenvalues).sum(-1)
    return torch.logsumexp(alpha * eigenvalues.log(), -1) / (1 - alpha)
