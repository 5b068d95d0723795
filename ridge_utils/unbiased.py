r"""Information of order 2 without the bias that the number of samples brings, with its exact null and its interval.

The order-2 estimate (:func:`ridge_utils.information.predictive_information` with ``alpha=2``) is made of means over all
:math:`N^2` pairs of samples, :math:`N` of which pair a sample with itself. With :math:`A_{ij} = k(x_i, x_j)^2`,
:math:`B_{ij} = k(y_i, y_j)^2`, and :math:`a, b, c` the means of :math:`A`, :math:`B` and :math:`A \circ B` over the
pairs :math:`i \ne j` alone, it is

.. math:: I_u = \ln \frac{c}{a\,b}.

Each mean is a U-statistic and has no bias; the jackknife takes out what the logarithm leaves. Over all pairings of
:math:`x` with :math:`y` the mean of :math:`c` is exactly :math:`a\,b`, and its variance is Mantel's [Mantel1967]_.
There are no eigenvalues and no shuffles, and no N x N matrix is held: the sums of its rows are enough.

.. [Mantel1967] N. Mantel. *The Detection of Disease Clustering and a Generalized Regression Approach.* Cancer Research
   27(2), 1967.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from ridge_utils import tensors
from ridge_utils.errors import InputError, at_least, of_type, within
from ridge_utils.kernels import PAPER, Estimator, median_bandwidth, unit_rows

#: The paper's kernel, at the order that has an unbiased form.
ORDER_TWO = replace(PAPER, alpha=2.0)

#: A variance that is smaller than this, beside the mean square, is rounding.
_ROUNDING = 1e-13
#: Rows of a kernel matrix that are held at a time: they stay in the processor's cache.
_STRIP = 128
#: Numbers of the layers' states that are held at a time, as float64.
_HELD = 2**27


@dataclass(frozen=True)
class Estimate:
    """Numbers with the standard errors of their jackknife, both of one shape and float64."""

    value: Tensor
    standard_error: Tensor
    #: samples behind each
    n: int

    def interval(self, level: float = 0.95) -> Tensor:
        """Ends of the interval by Student's t with n - 1 degrees of freedom, shape (..., 2)."""
        within(1e-9, 1 - 1e-9, level=level)
        reach = stats.t.isf((1 - level) / 2, self.n - 1) * self.standard_error
        return torch.stack([self.value - reach, self.value + reach], -1)


class Means(NamedTuple):
    r"""Means over pairs of different samples, each of shape (..., L)."""

    #: of :math:`A_{ij}`
    a: Tensor
    #: of :math:`B_{ij}`
    b: Tensor
    #: of :math:`A_{ij} B_{ij}`
    c: Tensor
    #: of :math:`A_{ij}^2`
    aa: Tensor
    #: of :math:`B_{ij}^2`
    bb: Tensor

    def at(self, layer: int) -> "Means":
        """Those of one layer, each of shape (...)."""
        return Means(*(mean[..., layer] for mean in self))

    @property
    def information(self) -> Tensor:
        r""":math:`I_u = \ln c / (a b)`."""
        return _log_ratio(self.a, self.b, self.c)

    @property
    def correlation(self) -> Tensor:
        """Mantel's r, the correlation of A and B over pairs, free of the scale of both and between -1 and 1.

        0 where all samples of one of them are the same, but for rounding.
        """
        spread_a, spread_b = self.aa - self.a**2, self.bb - self.b**2
        varies = (spread_a > _ROUNDING * self.aa) & (spread_b > _ROUNDING * self.bb)
        return ((self.c - self.a * self.b) / (spread_a * spread_b).where(varies, 1.0).sqrt()).where(varies, 0.0)

    def plug_in(self, n: int) -> Tensor:
        r"""The plug-in estimate from n samples, :math:`\ln f(c) / (f(a) f(b))`, :math:`f(t) = t + (1 - t) / n`."""
        return _log_ratio(*(mean + (1 - mean) / n for mean in (self.a, self.b, self.c)))

    def plug_in_null(self, n: int) -> Tensor:
        r"""What :meth:`plug_in` gives where x says nothing about y: the plug-in estimate at the mean of c.

        :math:`\ln [1 + e (1 - e) (1 - a)(1 - b) / (f(a) f(b))]`, :math:`e = 1/n`.
        """
        return self._replace(c=self.a * self.b).plug_in(n)


@dataclass(frozen=True)
class UnbiasedInformation:
    r"""Order-2 information of L layers with one target, in nats, and all that follows from the same sums over pairs."""

    #: sums over the other samples j, in the order of :class:`Means`, shape (5, N, L)
    sums: Tensor

    @property
    def n(self) -> int:
        """Number of samples N."""
        return self.sums.shape[1]

    @cached_property
    def means(self) -> Means:
        """The means over pairs of different samples, each of shape (L,)."""
        return Means(*self.sums.sum(1) / (self.n * (self.n - 1)))

    @cached_property
    def _left_out(self) -> Means:
        """The means without each sample in turn, each of shape (N, L): each pair has two places in the sums."""
        n, sums = self.n, self.sums
        return Means(*(sums.sum(1, keepdim=True) - 2 * sums) / ((n - 1) * (n - 2)))

    def estimate(self, function: Callable[[Means], Tensor]) -> Estimate:
        """Any smooth function of the means without its bias of order 1/N, with its error by leaving samples out."""
        value, others = function(self.means), function(self._left_out)
        mean, n = others.mean(0), self.n
        return Estimate(n * value - (n - 1) * mean, ((n - 1) / n * (others - mean).square().sum(0)).sqrt(), n)

    @cached_property
    def information(self) -> Estimate:
        r""":math:`I_u` of every layer, shape (L,)."""
        return self.estimate(lambda means: means.information)

    @cached_property
    def z(self) -> Tensor:
        r"""How many standard deviations of its null c lies above :math:`a\,b`, shape (L,).

        Over all N! pairings of x with y the mean of c is :math:`a\,b`. With S the sum of squares and R that of squared
        row sums, of A less a and of B less b off the diagonal, and :math:`D = R - S`, its variance is exactly

        .. math::

           \frac{1}{N^2 (N-1)^2} \Bigl[\frac{2 S_A S_B}{N(N-1)} + \frac{4 D_A D_B}{N(N-1)(N-2)}
           + \frac{4 (S_A + 2 D_A)(S_B + 2 D_B)}{N(N-1)(N-2)(N-3)}\Bigr].
        """
        n, (a, b, c, aa, bb) = self.n, self.means
        pairs = n * (n - 1)
        s_a, s_b = pairs * (aa - a**2), pairs * (bb - b**2)
        d_a, d_b = ((self.sums[i] - (n - 1) * mean).square().sum(0) - s for i, mean, s in ((0, a, s_a), (1, b, s_b)))
        variance = 2 * s_a * s_b + 4 * d_a * d_b / (n - 2)
        variance = variance + 4 * (s_a + 2 * d_a) * (s_b + 2 * d_b) / ((n - 2) * (n - 3))
        return (c - a * b) / (variance / pairs**3).clamp(min=0).sqrt()

    @cached_property
    def correlation(self) -> Estimate:
        """Mantel's r of every layer, shape (L,)."""
        return self.estimate(lambda means: means.correlation)

    @cached_property
    def alignment(self) -> Tensor:
        """Unbiased alignment of A and B, both U-centred, between -1 and 1 (Song et al. 2012), shape (L,).

        0 where all samples of one of them are the same, but for rounding.
        """
        n, (row_a, row_b) = self.n, self.sums[:2]
        total_ab, total_aa, total_bb = self.sums[2:].sum(1)

        def centred(product: Tensor, left: Tensor, right: Tensor) -> Tensor:
            sides = left.sum(0) * right.sum(0) / ((n - 1) * (n - 2))
            return product + sides - 2 / (n - 2) * (left * right).sum(0)

        both = centred(total_ab, row_a, row_b)
        own_a, own_b = centred(total_aa, row_a, row_a), centred(total_bb, row_b, row_b)
        varies = (own_a > _ROUNDING * total_aa) & (own_b > _ROUNDING * total_bb)
        return (both / (own_a * own_b).where(varies, 1.0).sqrt()).where(varies, 0.0)

    def plug_in(self, n: int) -> Estimate:
        """The plug-in estimate that ``n`` samples would give, shape (L,)."""
        at_least(2, n=n)
        return self.estimate(lambda means: means.plug_in(n))

    def bias_share(self, n: int) -> Estimate:
        """Share of the plug-in estimate from ``n`` samples that is its null, shape (L,)."""
        at_least(2, n=n)
        return self.estimate(lambda means: means.plug_in_null(n) / means.plug_in(n))


def unbiased_information(
    x: Tensor, y: Tensor, estimator: Estimator = ORDER_TWO, *, products: torch.dtype = torch.float64
) -> UnbiasedInformation:
    """Order-2 information of x with y without bias, its null and its errors, from one pass over the pairs.

    Time is that of one matrix product of the samples with themselves, memory a strip of it.

    Args:
        x: samples of shape (N, d), or of L layers, shape (L, N, d).
        y: the samples that they are paired with, shape (N, e).
        estimator: a Gaussian kernel, with ``alpha=2``.
        products: ``torch.float32`` computes the kernels in single precision, about twice as fast; at bandwidth 1 the
            result then has an error of about 1e-7. Sums are float64 either way.

    >>> _ = torch.manual_seed(0)
    >>> found = unbiased_information(torch.randn(200, 64), torch.randn(200, 64))  # which know nothing of each other
    >>> found.information.value, found.plug_in(200).value
    (tensor([-0.001...], dtype=torch.float64), tensor([0.161...], dtype=torch.float64))
    """
    x = tensors.shaped(x, "x", least=4)
    if x.ndim > 3:
        raise InputError(f"x must have shape (N, d) or (L, N, d), but has shape {tuple(x.shape)}.")
    y = tensors.samples(y, "y", "(N, e)", 4)
    tensors.same_number(x, y, ("x", "y"))
    of_type(Estimator, estimator=estimator)
    if estimator.kernel != "gaussian" or estimator.alpha != 2:
        raise InputError(
            f"The unbiased form is that of the Gaussian kernel at order 2, but estimator has {estimator.kernel} and "
            f"alpha={estimator.alpha:g}: use Estimator(alpha=2)."
        )
    of_type(torch.dtype, products=products)
    if products not in (torch.float64, torch.float32):
        raise InputError(f"products must be torch.float64 or torch.float32, but is {products}.")
    layers = x if x.ndim == 3 else x[None]
    n = len(y)
    sums = torch.zeros(5, len(layers), n, dtype=torch.float64, device=y.device)
    kernel_y = _SquaredKernel(y, "y", estimator, products)
    at_a_time = max(1, _HELD // layers[0].numel())
    for first in range(0, len(layers), at_a_time):
        part = range(first, min(first + at_a_time, len(layers)))
        kernels_x = [_SquaredKernel(layers[layer], f"x[{layer}]", estimator, products) for layer in part]
        for start in range(0, n, _STRIP):
            b = kernel_y.strip(start)
            _add(sums[1, first : part.stop], b, start)
            _add(sums[4, first : part.stop], b.square(), start)
            for layer, kernel_x in zip(part, kernels_x, strict=True):
                a = kernel_x.strip(start)
                _add(sums[0, layer], a, start)
                _add(sums[2, layer], a * b, start)
                _add(sums[3, layer], a.square_(), start)
    if not bool((sums[:3].sum(-1) > 0).all()):
        raise InputError(
            f"With bandwidth {estimator.bandwidth} no two samples of x or of y are alike: choose a larger bandwidth."
        )
    return UnbiasedInformation(sums.mT)


@dataclass(frozen=True)
class Halves:
    """Two halves of the samples: a layer that was chosen on one is judged on the other, and the other way round.

    A layer that is the largest by chance is not the largest again, so the choice is paid for.
    """

    #: shape (L,) layers each
    halves: tuple[UnbiasedInformation, UnbiasedInformation]
    #: indices of the samples of each
    indices: tuple[Tensor, Tensor]

    def chosen(self, layers: Sequence[int], quantity: Callable[[Means], Tensor]) -> list[int]:
        """Of the given layers, the one with the most on the other half, for each half."""
        largest = [layers[int(quantity(half.means)[list(layers)].argmax())] for half in self.halves]
        return largest[::-1]

    def estimate(self, chosen: Sequence[int], function: Callable[[Means, int], Tensor]) -> Estimate:
        """The mean over the halves of a function of the means and of the layer that was chosen for the half."""
        both = [
            half.estimate(lambda means, layer=layer: function(means, layer))
            for half, layer in zip(self.halves, chosen, strict=True)
        ]
        value = torch.stack([estimate.value for estimate in both]).mean(0)
        error = torch.stack([estimate.standard_error for estimate in both]).square().sum(0).sqrt() / 2
        return Estimate(value, error, sum(estimate.n for estimate in both))


def in_halves(hidden: Tensor, targets: Tensor, estimator: Estimator = ORDER_TWO, *, seed: int = 0) -> Halves:
    """:func:`unbiased_information` of two random halves of the samples, drawn with ``seed``.

    Shapes are (L, N, d), N of 8 or more, and (N, e).
    """
    hidden = tensors.shaped(hidden, "hidden", "(L, N, d)", least=8)
    targets = tensors.samples(targets, "targets", "(N, e)", least=8)
    tensors.same_number(hidden, targets, ("hidden", "targets"))
    for layer, states in enumerate(hidden):
        tensors.samples(states, f"hidden[{layer}]")
    indices = torch.randperm(len(targets), generator=tensors.generator(seed)).to(targets.device).chunk(2)
    first, second = (unbiased_information(hidden[:, index], targets[index], estimator) for index in indices)
    return Halves((first, second), (indices[0], indices[1]))


def ridge_fall(
    hidden: Tensor, targets: Tensor, estimator: Estimator = ORDER_TWO, *, seed: int = 0
) -> tuple[list[int], Estimate]:
    """Information of the layer that has most of it less that of the last layer, with the choice paid for.

    Args:
        hidden: states of shape (L, N, d), L of 2 or more; the last is not chosen.
        targets: shape (N, e).
        seed: of the halves.

    Returns:
        The layer that each half was judged at, and the mean of the two falls, shape (); negative where the last layer
        has most.

    >>> y, _ = torch.eye(4)[torch.arange(200) % 4], torch.manual_seed(0)
    >>> layers, fall = ridge_fall(torch.stack([y, y + torch.randn(200, 4)]), y)  # the last layer knows y through noise
    >>> layers, fall.interval()  # the layer of each half; nats
    ([0, 0], tensor([0.60..., 0.69...], dtype=torch.float64))
    """
    halves = in_halves(hidden, targets, estimator, seed=seed)
    if len(hidden) < 2:
        raise InputError("hidden must hold 2 layers or more, one of which is not the last.")
    chosen = halves.chosen(range(len(hidden) - 1), lambda means: means.information)
    return chosen, halves.estimate(chosen, lambda means, ridge: means.at(ridge).information - means.at(-1).information)


def _log_ratio(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return (c / (a * b)).log()


class _SquaredKernel:
    """The squared kernel of one set of samples, in strips right of the diagonal."""

    def __init__(self, x: Tensor, name: str, estimator: Estimator, dtype: torch.dtype) -> None:
        x = tensors.samples(x, name, "(N, d)")
        if estimator.normalize:
            x = unit_rows(x, name)
        scale = median_bandwidth(x) if estimator.bandwidth == "median" else estimator.bandwidth
        # One matrix product gives minus the squared distances, over the bandwidth's square.
        x = x / scale
        squares = x.square().sum(-1, keepdim=True)
        ones = torch.ones_like(squares)
        self.left = torch.cat([2 * x, -squares, ones], -1).to(dtype)
        self.right = torch.cat([x, ones, -squares], -1).to(dtype)

    def strip(self, start: int) -> Tensor:
        """:data:`_STRIP` rows from ``start`` on, columns from there to the end, the diagonal 0."""
        kernel = (self.left[start : start + _STRIP] @ self.right[start:].mT).clamp_(max=0).exp_()
        kernel.diagonal().zero_()
        return kernel


def _add(sums: Tensor, strip: Tensor, start: int) -> None:
    """Add a strip right of the diagonal, and its mirror image below it, to sums of rows, shape (..., N)."""
    end = start + len(strip)
    sums[..., start:end] += strip.sum(1, dtype=torch.float64)
    sums[..., end:] += strip[:, len(strip) :].sum(0, dtype=torch.float64)
